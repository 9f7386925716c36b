"""A network to measure: processes of this project and, if their binaries are available, of the Rust implementation.

This process is the scheduler, so that both kinds of workers get the same requests at the same times.
"""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from uuid import UUID, uuid4

import tomlkit
import trio

from hypha_devnet import certs
from hypha_devnet.client import Lease, Request, SchedulerClient, Wanted
from hypha_devnet.config import NodeConfig
from hypha_devnet.ports import free_port
from hypha_devnet.roles.node import join
from hypha_messages.advertisement import TOPIC, WorkerSpec
from hypha_messages.api import DataAssignment, ReportJobStatus
from hypha_messages.health import HEALTH, HealthRequest
from hypha_messages.job import ExecutorDescriptor, JobSpec
from hypha_messages.progress import ProgressResponse, ReportProgress
from hypha_messages.types import Resources
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.identity import Identity
from hypha_network.network import Network

Kind = Literal["ours", "rust"]
TRANSPORTS = {"tcp": "tcp/{port}", "quic": "udp/{port}/quic-v1"}
EXECUTOR = Path(__file__).with_name("executor.py")
SMALL_RESOURCES = Resources(cpu=0.001, memory=0.001, storage=0, gpu=0)
JOB = Resources(cpu=1, memory=4, storage=8, gpu=0)
READY_S = 60.0
STOP_S = 20.0
_LAST_LINES = 15


class BenchmarkError(Exception):
    """A node failed, so that nothing can be measured. The text names it and quotes its log."""


def rust_binaries() -> Path | None:
    """Return the directory that HYPHA_BIN names, or None if unset; BenchmarkError if it lacks a program."""
    value = os.environ.get("HYPHA_BIN")
    if not value:
        return None
    for name in ("gateway", "data", "worker"):
        if not os.access(Path(value, f"hypha-{name}"), os.X_OK):
            raise BenchmarkError(f"HYPHA_BIN={value} holds no program hypha-{name}")
    return Path(value)


def kinds() -> tuple[Kind, ...]:
    """Return the kinds of nodes that can be measured."""
    return ("ours", "rust") if rust_binaries() else ("ours",)


def job_of(job_id: UUID, executor: str, config: dict[str, Any]) -> JobSpec:
    """Return the specification of one executor's part of a job."""
    class_ = "aggregate" if executor == "aggregate" else "train"
    descriptor = {"class": class_, "descriptor": {"name": executor}, "config": config}
    return JobSpec.model_validate({"job_id": str(job_id), "executor": descriptor})


def peers(*ids: str) -> dict[str, Any]:
    """Return a reference to all of these peers."""
    return {"type": "peers", "peers": list(ids), "strategy": {"type": "All"}}


def train_config(data: dict[str, Any], server: str) -> dict[str, Any]:
    """Return the configuration of a training job without a model."""
    model = {"task": "auto", "artifact": {"type": "uri", "value": "http://127.0.0.1/none"}, "input-names": []}
    both = {"updates": peers(server), "results": peers(server)}
    return {"model": model, "data": data, **both, "optimizer": {"learning-rate": 0.1}, "batch_size": 1}


@dataclass
class Node:
    """A node's process. A worker's executor has the same name."""

    name: str
    program: str
    peer_id: str
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise BenchmarkError if the process has ended."""
        if self.process.poll() is not None:
            raise BenchmarkError(f"{self.name} ended with status {self.process.returncode}:\n{self.last_lines()}")

    def last_lines(self) -> str:
        """Return the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:])


@dataclass
class Stage:
    """The network's directory and processes.

    Attributes:
        directory: Holds all files.
        authority: Signs the certificates.
        nodes: The nodes that run.
        gateways: The gateway's addresses.
        listen_addresses: Those of every other node.
        exclude_cidr: The networks of which nodes ignore addresses.
        prefix: Returns what begins the command of a node of this name.
    """

    directory: Path
    authority: certs.Credential
    nodes: list[Node] = field(default_factory=list)
    gateways: Sequence[str] = ()
    listen_addresses: Sequence[str] = ("/ip4/127.0.0.1/tcp/0",)
    exclude_cidr: Sequence[str] = ("10.0.0.0/8",)
    prefix: Callable[[str], Sequence[str]] = lambda _name: ()

    def credentials(self, name: str) -> dict[str, str]:
        """Make a new node's certificate; return the keys of its configuration that name it."""
        files = certs.write_node(certs.create_node(self.authority, name), self.directory, name)
        return {"cert_pem": str(files.cert), "key_pem": str(files.key), "trust_pem": str(files.trust)}

    def common(self, name: str) -> dict[str, Any]:
        """Return the keys of every configuration; the Rust nodes require all of them."""
        return {
            **self.credentials(name),
            "gateway_addresses": list(self.gateways),
            "listen_addresses": list(self.listen_addresses),
            "external_addresses": [],
            "exclude_cidr": list(self.exclude_cidr),
            "relay_circuit": True,
        }

    def start(
        self, name: str, kind: Kind, program: str, config: dict[str, Any], environment: Mapping[str, str] | None = None
    ) -> Node:
        """Start a node: the Rust program hypha-PROGRAM, or this project's."""
        path = self.directory / f"{name}.toml"
        path.write_text(tomlkit.dumps(config))
        if kind == "rust":
            binaries = rust_binaries()
            assert binaries is not None
            command = [str(binaries / f"hypha-{program}"), "run", "--config", str(path)]
        elif program == "worker":
            command = [sys.executable, "-m", "hypha_worker", "run", "--config", str(path)]
        else:
            command = [sys.executable, "-m", "hypha_devnet", program, "--config", str(path)]
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.prefix(name), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "RUST_LOG": "info", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **(environment or {})},
            )
        identity = Identity.load(Path(config["cert_pem"]), Path(config["key_pem"]), Path(config["trust_pem"]))
        node = Node(name, program, identity.peer_id, process, log)
        self.nodes.append(node)
        return node

    def start_gateway(
        self, kind: Kind, addresses: Sequence[str], environment: Mapping[str, str] | None = None, **settings: Any
    ) -> Node:
        """Start the gateway that all other nodes use, at these addresses."""
        self.gateways = addresses
        config = {**self.common("gateway"), "listen_addresses": addresses, "external_addresses": addresses, **settings}
        del config["gateway_addresses"], config["relay_circuit"]
        return self.start("gateway", kind, "gateway", config, environment)

    def start_data_node(self, name: str, kind: Kind, dataset: Path) -> Node:
        """Start a data node with one dataset."""
        config = self.common(name)
        if kind == "rust":
            del config["external_addresses"]
        return self.start(name, kind, "data", {**config, "dataset_path": str(dataset)})

    def start_worker(
        self,
        name: str,
        kind: Kind,
        arguments: Sequence[str] | None,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Node:
        """Start a worker with more settings that runs the executor with these arguments, or a parameter server."""
        work_dir = self.directory / f"work-{name}"
        work_dir.mkdir()
        executor: dict[str, Any]
        if arguments is None:
            executor = {"class": "aggregate", "name": name, "runtime": "parameter-server"}
        else:
            # -P keeps the script's own directory out of sys.path, because a file there could hide a standard module.
            call = {"cmd": sys.executable, "args": ["-P", str(EXECUTOR), *arguments]}
            executor = {"class": "train", "name": name, "runtime": "process", **call}
        config = {
            **self.common(name),
            "work_dir": str(work_dir),
            "resources": {"cpu": 4, "memory": 16, "storage": 64, "gpu": 0},
            "offer": {"price": 1.0, "floor": 1.0, "strategy": {"type": "flexible"}},
            "executors": [executor],
            **settings,
        }
        if kind == "ours":
            config["jobs"] = {"read_ahead": 0}  # the Rust worker fetches one slice at a time, too
            config["offer"]["minimum"] = dict.fromkeys(("cpu", "memory", "storage"), 0.001)  # it has no minimum
            config["offer"]["aggregate_needs_reach"] = False  # nor does it judge how trainers reach it
        return self.start(name, kind, "worker", config, environment)

    async def stop(self, *nodes: Node) -> None:
        """Stop these nodes, or all."""
        chosen = nodes or tuple(self.nodes)
        for node in chosen:
            node.process.terminate()
        with trio.move_on_after(STOP_S):
            for node in chosen:
                await trio.to_thread.run_sync(node.process.wait, abandon_on_cancel=True)  # type: ignore[call-arg] # mypy and variadic generics
        for node in chosen:
            with suppress(ProcessLookupError):
                os.killpg(node.process.pid, signal.SIGKILL)
            node.process.wait()
            self.nodes.remove(node)


class Scheduler:
    """Requests workers one by one and dispatches jobs; `provider` is the data node that has every slice."""

    def __init__(self, nursery: trio.Nursery, network: Network) -> None:
        self._nursery = nursery
        self.network = network
        self.provider = ""
        self.failed: set[str] = set()
        self._leases: dict[UUID, Lease] = {}
        self._client = SchedulerClient(
            network, assign_slice=self._assign_slice, on_status=self._on_status, on_progress=self._on_progress
        )

    def _assign_slice(self, _peer: str, _dataset: str) -> DataAssignment:
        return DataAssignment(data_provider=self.provider, index=0)

    def _on_status(self, peer: str, report: ReportJobStatus) -> None:
        if report.status.type == "Failed":
            self.failed.add(peer)
        if report.status.type != "Running" and (lease := self._leases.get(report.task_id)):
            lease.abandoned = True

    async def _on_progress(self, _peer: str, _report: ReportProgress) -> ProgressResponse:
        return ProgressResponse(type="Ok")

    async def until_ready(self, *nodes: Node) -> None:
        """Wait until workers report that they are healthy. A data node may refuse to report, but must answer."""
        for node in nodes:
            with trio.move_on_after(READY_S) as scope:
                while not await self._is_ready(node):
                    node.check()
                    await trio.sleep(0.2)
            if scope.cancelled_caught:
                raise BenchmarkError(f"{node.name} is not healthy after {READY_S:g} s:\n{node.last_lines()}")

    async def _is_ready(self, node: Node) -> bool:
        try:
            answer = await self.network.request(node.peer_id, HEALTH, HealthRequest(), timeout_s=2)
        except RemoteRefused:
            return node.program == "data"
        except NetworkError:
            return False
        return bool(answer.healthy)

    async def advertise(self, node: Node, resources: Resources) -> Request:
        """Publish a request that only this worker can answer, once it subscribes to requests."""
        with trio.fail_after(READY_S):
            await self.network.wait_until(lambda: node.peer_id in self.network.subscribers(TOPIC))
        return await self._client.advertise(_wanted(node, resources, "train"))

    def source(self, dataset: str) -> dict[str, Any]:
        """Return a reference to the slices of a dataset that this scheduler assigns."""
        return {"type": "scheduler", "peer": self.network.peer_id, "dataset": dataset}

    async def train(self, trainers: Sequence[Node], server: Node, dataset: str) -> None:
        """Start a job on trainers and their parameter server."""
        ids = [trainer.peer_id for trainer in trainers]
        job_id = uuid4()
        optimizer = {"learning-rate": 0.7, "momentum": 0.9}
        aggregate = {"updates": peers(*ids), "results": peers(*ids), "optimizer": optimizer}
        await self.hire(server, job_of(job_id, "aggregate", aggregate))
        for trainer in trainers:
            config = train_config(self.source(dataset), server.peer_id)
            await self.hire(trainer, job_of(job_id, trainer.name, config))

    async def hire(self, node: Node, spec: JobSpec) -> None:
        """Dispatch a job to a worker, and renew its lease until the job ends."""
        lease, task_id = await self._lease(node, spec.executor.class_), uuid4()
        self._leases[task_id] = lease
        self._nursery.start_soon(self._client.keep, lease)
        if not await self._client.dispatch(lease, spec, task_id):
            raise BenchmarkError(f"{node.name} refuses the job:\n{node.last_lines()}")

    async def _lease(self, node: Node, class_: str) -> Lease:
        with trio.move_on_after(READY_S):
            return await self._client.hire(_wanted(node, JOB, class_), node.peer_id, within_s=2)
        raise BenchmarkError(f"{node.name} offers nothing:\n{node.last_lines()}")

    async def report(self, path: Path, *nodes: Node, timeout_s: float) -> str:
        """Wait for an executor's report; return its text."""
        with trio.move_on_after(timeout_s):
            while not path.exists():  # noqa: ASYNC240 - a local file, seldom
                for node in nodes:
                    node.check()
                    if node.peer_id in self.failed:
                        raise BenchmarkError(f"the job of {node.name} failed:\n{node.last_lines()}")
                await trio.sleep(0.1)
            return path.read_text()  # noqa: ASYNC240
        raise BenchmarkError(f"no report within {timeout_s:g} s:\n" + "\n".join(n.last_lines() for n in nodes))


def _wanted(node: Node, resources: Resources, class_: str) -> Wanted:
    executor = ExecutorDescriptor.model_validate({"class": class_, "name": node.name})
    return Wanted(WorkerSpec(resources=resources, executor=[executor]), bid=10, role=class_)


@asynccontextmanager
async def open_stage(transport: str = "tcp") -> AsyncIterator[tuple[Stage, Scheduler]]:
    """Open a network with a gateway (the Rust one if available) and a scheduler. All nodes end with the context.

    They have addresses of one transport, a key of `TRANSPORTS`.
    """
    with TemporaryDirectory(prefix="bench-") as directory:
        stage = Stage(Path(directory), certs.create_organisation(certs.create_root(), "benchmark"))
        stage.listen_addresses = [_loopback(transport, 0)]
        try:
            await _start_gateway(stage, transport)
            async with join(NodeConfig.model_validate(stage.common("scheduler"))) as network:
                with trio.fail_after(READY_S):
                    await network.wait_ready()
                async with trio.open_nursery() as nursery:
                    yield stage, Scheduler(nursery, network)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await stage.stop()


def _loopback(transport: str, port: int) -> str:
    return f"/ip4/127.0.0.1/{TRANSPORTS[transport].format(port=port)}"


async def _start_gateway(stage: Stage, transport: str) -> None:
    port = free_port()
    addresses = [_loopback(name, port) for name in TRANSPORTS]
    node = stage.start_gateway("rust" if rust_binaries() else "ours", addresses)
    stage.gateways = [_loopback(transport, port)]
    with trio.fail_after(READY_S):
        while True:
            node.check()
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.1)
            else:
                await stream.aclose()
                return
