"""The Hypha network outside the cluster: certificates, gateway, data node, hub, and digits to train."""

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomlkit

from e2e.processes import Event, Process
from hypha_devnet import certs
from hypha_devnet.demo.inference import inference_job
from hypha_devnet.demo.settings import Files, job_config, load_identity, node_config
from hypha_network.identity import Identity

_ORGANISATION: Final = "e2e"
_JUDGE_S: Final = 120.0
_READY_S: Final = 90.0
NEEDED: Final = {
    "trainer": {"cpu": 0.5, "memory": 1.5, "storage": 1},
    "server": {"cpu": 0.15, "memory": 0.3, "storage": 1},
}
"""The resources that the digits need of workers, in cores and GB."""


@dataclass
class Devnet:
    """The network's processes on this machine; `host` is where pods reach them.

    Args:
        directory: for all its files; must be empty.
        host: an address of this machine.
    """

    directory: Path
    host: str
    gateway: str = ""
    hub: str = ""
    _processes: list[Process] = field(default_factory=list)
    _jobs: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def files(self) -> Files:
        """The paths of all files."""
        return Files(self.directory)

    def start(self) -> None:
        """Start gateway, hub and data node, and prepare the digits meanwhile."""
        files = self.files
        files.logs.mkdir(parents=True)
        files.configurations.mkdir()
        files.hub.mkdir()
        self.certify("gateway", "data", "scheduler", "e2e")
        preparing = self._start("prepare", "-m", "e2e.digits", "prepare", str(files.root))
        gateway = self._node("gateway", {})
        self.gateway = gateway.event("listening")["addresses"][0]
        hub = self._start(
            "hub", "-m", "hypha_devnet", "hub", "--root", str(files.hub), "--listen", f"{self.host}:0", "--events"
        )
        self.hub = hub.event("listening")["url"]
        preparing.event("prepared", _READY_S)
        datasets = [str(files.dataset), str(files.held_out)]
        self._node("data", {"dataset_paths": datasets}).event("announced", _READY_S)

    def stop(self) -> None:
        """End all processes."""
        for process in reversed(self._processes):
            process.stop()

    def certify(self, *nodes: str, revoke: tuple[str, ...] = ()) -> None:
        """Make certificates for nodes that have none, and revoke some."""
        with self._lock:
            certs.make(self.files.certificates, _ORGANISATION, nodes, revoke)

    def identity(self, node: str) -> Identity:
        """Return a node's identity."""
        return load_identity(self.files, node)

    def secret(self, name: str, namespace: str, node: str) -> dict[str, Any]:
        """Return the Secret with a node's identity."""
        self.certify(node)
        directory = self.files.certificates
        content = {
            "tls.crt": directory / f"{node}-cert.pem",
            "tls.key": directory / f"{node}-key.pem",
            "ca.crt": directory / f"{node}-trust.pem",
            "crl.pem": directory / "crls.pem",
        }
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": {key: path.read_text() for key, path in content.items()},
        }

    def train(self, rounds: int) -> "Training":
        """Start a job that trains the digits for this many rounds."""
        self._jobs += 1
        name = f"job-{self._jobs}"
        job = job_config()
        job["rounds"]["update_rounds"] = rounds
        job["schedule"]["training_steps"] = max(1, job["schedule"]["training_steps"] * rounds // 20)
        job["resources"] |= {"worker": NEEDED["trainer"], "parameter_server": NEEDED["server"]}
        config = self._node_config("scheduler") | {"scheduler": {"job": job}}
        updates = self.directory / "updates" / name
        process = self._start(name, "-m", "e2e.digits_scheduler", str(self._write(name, config)), str(updates))
        return Training(self, process, updates, rounds)

    def infer(self) -> "Inference":
        """Start a job that predicts the held-out digits with the untrained model, on one worker."""
        job = inference_job(self.files, self.files.model.repository, NEEDED["trainer"])
        job["resources"]["num_workers"] = 1
        config = self._node_config("scheduler") | {"scheduler": {"job": job}}
        path = self._write("inference", config)
        process = self._start("inference", "-m", "hypha_devnet", "scheduler", "--config", str(path), "--events")
        return Inference(process, self.files.predictions)

    def judge(self, updates: Path) -> float:
        """Return the accuracy on held-out digits of the model that results from these updates."""
        judge = self._start(f"judge-{updates.name}", "-m", "e2e.digits", "judge", str(self.directory), str(updates))
        accuracy: float = judge.event("judged", _JUDGE_S)["accuracy"]
        return accuracy

    def _node(self, name: str, more: Mapping[str, Any]) -> Process:
        path = self._write(name, self._node_config(name) | dict(more))
        return self._start(name, "-m", "hypha_devnet", name, "--config", str(path), "--events")

    def _node_config(self, name: str) -> dict[str, Any]:
        config = node_config(self.files, name, self.gateway or None)
        return config | {"listen_addresses": [f"/ip4/{self.host}/tcp/0"]}

    def _write(self, name: str, config: Mapping[str, Any]) -> Path:
        path = self.files.configurations / f"{name}.toml"
        path.write_text(tomlkit.dumps(config))
        return path

    def _start(self, name: str, *args: str) -> Process:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        process = Process(name, [sys.executable, *args], self.files.logs, environment)
        self._processes.append(process)
        return process


@dataclass
class Inference:
    """A job that predicts the held-out digits."""

    process: Process
    predictions: Path

    def of(self, name: str) -> list[Event]:
        """Return the scheduler's events of a name so far."""
        return self.process.of(name)


@dataclass
class Training:
    """A job that trains the digits."""

    devnet: Devnet
    process: Process
    updates: Path
    rounds: int

    def of(self, name: str) -> list[Event]:
        """Return the scheduler's events of a name so far."""
        return self.process.of(name)

    def tasks(self) -> list[str]:
        """Return the ids of the job's three tasks, once they are dispatched."""
        self.process.until("dispatch three tasks", lambda: len(self.of("dispatched")) == 3, 120)
        return [event["task"] for event in self.of("dispatched")]

    def until_round(self, number: int) -> None:
        """Wait until this many rounds are complete."""
        self.process.until(f"complete round {number}", lambda: len(self.of("round")) >= number, 300)

    def accuracy(self, timeout_s: float) -> float:
        """Wait for the end, which must be successful and without a lost lease; return the model's accuracy."""
        status = self.process.ended(timeout_s)
        problems = [*self.of("failed"), *self.of("worker_lost"), *self.of("lease_lost")]
        assert not status, f"{problems}\n{self.process.last_lines()}"
        assert not problems, problems
        assert len(self.of("round")) == self.rounds
        return self.devnet.judge(self.updates)
