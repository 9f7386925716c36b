"""Runs one job after another: two trainers and a parameter server, each behind a bridge of its own, and a model hub.

Bridges, hub and parameter server are the real programs, and the trainers run their real entry point. The nodes below
the bridges, with the peers and the scheduler behind them, are threads of this process.
"""

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from safetensors.torch import save

from support.bridge_node import TOKEN, FakeNode
from support.waiting import until
from zoo.family import BATCH, Family, Tensors

SCHEDULER: Final = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
PROVIDER: Final = "12D3KooWHCJbJKGDfCgHRoCuK9q4STyRnVveqLoXAPBbXHTZx9Cv"
TRAINERS: Final = (
    "12D3KooWSHj3RRbBjD15g6wekV8y3mm57Pobmps2g2WJm6F67Lay",
    "12D3KooWLJtG8fd2hkQzTn96MrLvThmnNQjTUFZwGEsLRz5EmSzc",
)
SERVER: Final = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"

ROUNDS: Final = 2
BATCHES: Final = 4
"""Batches of each trainer in a round."""
JOB_S: Final = 300.0
_OTHER_S: Final = 5.0
"""How long the other trainer may need to fail as well."""
_ASSIGNED: Final = 40
"""Slices for each trainer, which reads ahead. After the last slice, the first comes again."""
_PRELOADED: Final = ["accelerate", "hypha_trainer.loop", "hypha_trainer.setup"]


def spec(family: Family, files: Sequence[str], job_id: str) -> dict[str, Any]:
    """Return the trainers' part of a family's job."""
    artifact = {"type": "huggingface", "repository": f"zoo/{family}", "filenames": sorted(files)}
    server = _peers(SERVER)
    config: dict[str, Any] = {
        "model": {"task": family.task, "artifact": artifact, "input-names": list(family.inputs)},
        "data": {"type": "scheduler", "peer": SCHEDULER, "dataset": "zoo"},
        "updates": server,
        "results": server,
        "optimizer": {"learning-rate": family.learning_rate},
        "batch_size": BATCH,
    }
    if family.preprocessor:
        kind, inputs, _ = family.preprocessor
        config["preprocessor"] = {"task": kind, "artifact": artifact, "input-names": list(inputs)}
    return {"job_id": job_id, "executor": {"class": "train", "descriptor": {"name": "zoo"}, "config": config}}


def _aggregation(job_id: str) -> dict[str, Any]:
    trainers = _peers(*TRAINERS)
    config = {"updates": trainers, "results": trainers, "optimizer": {"learning-rate": 1.0, "momentum": 0.0}}
    return {"job_id": job_id, "executor": {"class": "aggregate", "descriptor": {"name": "zoo"}, "config": config}}


def _peers(*ids: str) -> dict[str, Any]:
    return {"type": "peers", "peers": list(ids), "strategy": {"type": "All"}}


class Member(FakeNode):
    """The node of one member of a job. It passes pushes on to the others, and answers as the scheduler does."""

    def __init__(self, directory: Path, peer: str, members: "dict[str, Member]") -> None:
        directory.mkdir()
        super().__init__(directory / "connector.sock")
        self.directory = directory
        self.peer = peer
        self._members = members
        self._steps = 0

    def answer(self, progress: Any) -> dict[str, Any]:
        first = not self.reported or not isinstance(self.reported[-1], dict) or "status" not in self.reported[-1]
        if isinstance(progress, dict) and "metrics" in progress:
            return {"type": "Ok"}
        self.reported.append(progress)
        if isinstance(progress, dict):
            return {"type": "ScheduleUpdate", "counter": BATCHES - 1} if first else {"type": "Continue"}
        if progress == "update":
            return {"type": "Ok"}
        self._steps += 1
        return {"type": "Done" if self._steps == ROUNDS else "Continue"}

    def take(self, peer: str, data: bytes) -> None:
        self._members[peer].incoming.put((self.peer, data))


@dataclass(frozen=True)
class Outcome:
    """How a job ended: the trainers' exit codes and logs, and the models that they kept."""

    codes: tuple[int, ...]
    logs: tuple[str, ...]
    models: tuple[Path, ...]


class Jobs:
    """Runs jobs in a directory; `folder` says where the hub has a family's model."""

    def __init__(self, directory: Path, hub_url: str) -> None:
        self._directory = directory
        self._hub_url = hub_url
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)  # torch takes seconds to import

    def folder(self, family: Family) -> Path:
        """Return the folder of a family in the hub."""
        return self._directory / "hub" / "zoo" / str(family)

    def train(self, family: Family, slices: Sequence[Sequence[Tensors]]) -> Outcome:
        """Train the family's model, each trainer on its own slices, in a new directory."""
        job_id = str(uuid4())
        members: dict[str, Member] = {}
        for number, peer in enumerate((*TRAINERS, SERVER)):
            members[peer] = Member(self._directory / f"{job_id[:8]}-{number}", peer, members)
        trainers = [members[peer] for peer in TRAINERS]
        for node, parts in zip(trainers, slices, strict=True):
            node.slices |= {("zoo", index): save(part) for index, part in enumerate(parts)}
            for index in range(_ASSIGNED):
                node.assign("zoo", PROVIDER, index % len(parts))
        job = spec(family, [path.name for path in self.folder(family).iterdir()], job_id)
        with ExitStack() as stack:
            for node in members.values():
                stack.enter_context(_bridge(node, job if node in trainers else _aggregation(job_id), self._hub_url))
            until(lambda: all(_socket(node).is_socket() for node in members.values()))
            server = [sys.executable, "-m", "hypha_parameter_server", *_arguments(members[SERVER])]
            stack.enter_context(_process(server, members[SERVER].directory / "executor.log"))
            codes = self._run(trainers)
        logs = tuple((node.directory / "executor.log").read_text() for node in trainers)
        models = tuple(node.directory / "models" / job_id for node in trainers)
        return Outcome(codes, logs, models)

    def _run(self, trainers: Sequence[Member]) -> tuple[int, ...]:
        """Run the trainers to their ends, or to the first failure; return their exit codes, -9 if killed."""
        running = []
        for node in trainers:
            arguments = _arguments(node, "--trust-remote-code", "--output-dir", str(node.directory / "models"))
            running.append(self._context.Process(target=_train, args=(arguments, node.directory / "executor.log")))
            running[-1].start()
        try:
            until(lambda: all(p.exitcode == 0 for p in running) or any(p.exitcode for p in running), JOB_S)
            for process in running:
                process.join(_OTHER_S)
        finally:
            for process in running:
                process.kill()
                process.join()
        return tuple(process.exitcode or 0 for process in running)


def _socket(node: Member) -> Path:
    return node.directory / "work" / "bridge.sock"


def _arguments(node: Member, *more: str) -> list[str]:
    paths = {
        "--socket": _socket(node),
        "--work-dir": node.directory / "work",
        "--job-file": node.directory / "job.json",
    }
    return [*(str(part) for pair in paths.items() for part in pair), *more]


def _train(arguments: list[str], log: Path) -> None:
    """Run the trainer's entry point in this process, which ends with it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    sys.argv = ["hypha_trainer", *arguments]

    import torch  # noqa: PLC0415

    from hypha_trainer.program import end_with  # noqa: PLC0415
    from hypha_trainer.training import main  # noqa: PLC0415

    torch.set_num_threads(1)
    end_with(main)


@contextmanager
def _bridge(node: Member, job: dict[str, Any], hub_url: str) -> Iterator[None]:
    directory = node.directory
    (directory / "job.json").write_text(json.dumps(job))
    (directory / "token").write_text(TOKEN)
    (directory / "work").mkdir(mode=0o700)
    config = {
        "job_file": str(directory / "job.json"),
        "work_dir": str(directory / "work"),
        "socket": str(_socket(node)),
        "connector": {"uds": str(node.uds), "token_file": str(directory / "token"), "deadline_s": 10},
        "state_dir": str(directory / "bridge"),
        "hub_endpoint": hub_url,
        "drain_s": 1,
    }
    (directory / "bridge.json").write_text(json.dumps(config))
    node.start()
    try:
        command = [sys.executable, "-m", "hypha_bridge", "--config", str(directory / "bridge.json")]
        with _process(command, directory / "bridge.log"):
            yield
    finally:
        node.stop()


@contextmanager
def _process(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def open_jobs(directory: Path) -> Iterator[Jobs]:
    """Open a directory for jobs, and the hub that serves `hub` in it."""
    (directory / "hub").mkdir()
    command = [sys.executable, "-m", "hypha_devnet", "hub", "--root", str(directory / "hub"), "--events"]
    with _process(command, directory / "hub.log"):
        lines = directory / "hub.log"
        until(lambda: '"url"' in lines.read_text())
        event = next(line for line in lines.read_text().splitlines() if line.startswith("{"))
        yield Jobs(directory, json.loads(event)["url"])
