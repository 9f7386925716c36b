"""`hypha-devnet demo`: a network on this machine trains a model and shows its progress."""

import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import trio
import typer
from rich.console import Console
from rich.markup import escape

from hypha_contracts import command_line, logs
from hypha_contracts.command_line import leaves
from hypha_contracts.text import escaped_lines
from hypha_devnet import certs
from hypha_devnet.demo.board import Board
from hypha_devnet.demo.inference import inference_job, publish, score_predictions, trained_repository
from hypha_devnet.demo.models import MODELS, ModelName
from hypha_devnet.demo.plot import plot
from hypha_devnet.demo.processes import Process, ProcessDiedError, Processes, open_processes
from hypha_devnet.demo.settings import (
    NEEDED,
    NODES,
    SHOWN,
    TRAINERS,
    WORKERS,
    Files,
    job_config,
    load_identity,
    node_config,
    worker_config,
    write_config,
)
from hypha_devnet.demo.view import LiveView, PlainView, View
from hypha_devnet.ports import free_port
from hypha_devnet.roles.node import healthy
from hypha_network.changes import Changes
from hypha_network.errors import HyphaNetworkError
from hypha_network.network import NetworkConfig, open_network

_MARKER: Final = ".hypha-demo"
_READY_S: Final = 90.0
_JOB_S: Final = 600.0
_ROUNDING: Final = 1e-3
_POLL_S: Final = 0.25
_REFRESH_S: Final = 0.25
_INTERRUPTED: Final = 130
_MAX_TEMPORARY_CHARACTERS: Final = 28
_DEVNET: Final = ("-m", "hypha_devnet")

app = command_line.new_app("hypha-devnet demo")


class DemoError(Exception):
    """The demo failed. The text says why and where to look."""


@dataclass(frozen=True)
class Result:
    """How good the models are.

    Attributes:
        network: the score of the model that the network trained, judged in one process.
        inference: the score of the same model, by the predictions of the inference job.
        alone: the score of the model that one process trained.
        baseline: the score of the simplest guess.
        example: what the network's model writes.
    """

    network: float
    inference: float
    alone: float
    baseline: float
    example: str

    @property
    def same(self) -> bool:
        """Whether the inference job predicts as one process does, apart from rounding."""
        return math.isclose(self.network, self.inference, rel_tol=_ROUNDING)


@app.command()
def demo(
    model: Annotated[ModelName, typer.Option(help="What to train.")] = ModelName.DIGITS,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to train; fewer than by default end worse.")] = None,
    output: Annotated[Path, typer.Option(help="Directory for the results; replaces those of an earlier demo.")] = Path(
        "demo-output"
    ),
    plain: Annotated[bool, typer.Option("--plain", help="Print lines instead of a board.")] = False,
) -> None:
    """Train a model over a Hypha network on this machine, with a process and a certificate for each node."""
    console = Console()
    view: View = PlainView(console) if plain or not console.is_terminal else LiveView(console)
    result: Result | None = None
    problems: list[str] = []
    try:
        chosen = replace(MODELS[model], rounds=rounds) if rounds else MODELS[model]
        files = Files(_fresh(output.absolute()), chosen)
        with tempfile.TemporaryDirectory(prefix="hypha-demo-", dir=_short_directory()) as work_dir, view.screen():
            result = trio.run(_Demo(files, Path(work_dir), view).run)
    except* (DemoError, ProcessDiedError, HyphaNetworkError, OSError) as group:
        problems = [str(error) for error in leaves(group)]
    if problems:
        console.print("The demo failed.", *problems, sep="\n", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
    if result is None:
        console.print("Interrupted; every process has ended.")
        raise typer.Exit(_INTERRUPTED)
    raise typer.Exit(0 if _report(console, files, result) else 1)


def _fresh(output: Path) -> Path:
    """Return an empty directory; delete the results of an earlier demo, but nothing else."""
    marker = output / _MARKER
    if marker.exists():
        shutil.rmtree(output)
    elif output.exists() and any(output.iterdir()):
        raise DemoError(f"{output} holds something other than an earlier demo; name another directory with --output")
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()
    return output


def _short_directory() -> str:
    """Return a directory for temporary ones. It is short, because the paths of jobs' Unix sockets must be short."""
    directory = tempfile.gettempdir()
    return directory if len(directory) <= _MAX_TEMPORARY_CHARACTERS else "/tmp"  # noqa: S108 - the name below is random


class _Demo:
    """One run of the demo."""

    def __init__(self, files: Files, work_dir: Path, view: View) -> None:
        self._files = files
        self._work_dir = work_dir
        self._view = view
        self._board = Board(time.time(), files.model)
        self._events: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._changes = Changes()
        self._processes: Processes

    async def run(self) -> Result | None:
        """Run the demo; None if it was interrupted."""
        files = self._files
        files.logs.mkdir()
        logs.configure("info", stream=(files.logs / "demo.log").open("a"))
        result: Result | None = None
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refresh)
                with trio.CancelScope() as scope:
                    nursery.start_soon(self._watch, signals, scope)
                    async with open_processes(files.logs, self._environment(), self._take, WORKERS) as self._processes:
                        result = await self._train()
                nursery.cancel_scope.cancel()
        self._view.show(self._board)
        return result

    async def _train(self) -> Result:
        files, board, start = self._files, self._board, self._processes.start
        lesson = (files.model.name, str(files.model.rounds), files.root)
        model = await start("model", ["-m", "hypha_devnet.demo.model", *lesson], talks=True)
        certs.make(files.certificates, "demo", NODES)
        board.peers = {load_identity(files, node).peer_id: node for node in NODES}
        board.phase = "network"
        await self._node("gateway", node_config(files, "gateway", None))
        gateway = (await self._event("gateway", "listening"))["addresses"][0]
        files.hub.mkdir()
        await start("hub", [*_DEVNET, "hub", "--root", files.hub, "--events"])
        hub = (await self._event("hub", "listening"))["url"]
        board.phase = "workers"
        page = f"127.0.0.1:{free_port()}"
        for number, worker in enumerate(WORKERS):
            config = worker_config(
                files, worker, gateway, self._work_dir / str(number), page if worker == SHOWN else None
            )
            path = write_config(files, worker, config)
            await start(worker, ["-m", "hypha_worker", "run", "--config", path], {"HF_ENDPOINT": hub})
        prepared = await self._event("model", "prepared")
        datasets = [str(files.dataset), str(files.held_out)]
        await self._node("data", {**node_config(files, "data", gateway), "dataset_paths": datasets})
        await self._until_ready(gateway)
        board.page = f"http://{page}/"
        board.add_line(f"the status page of {SHOWN} is at {board.page}")
        board.phase = "training"
        await self._run_job("scheduler", job_config(files.model), gateway)
        board.phase = "inference"
        publish(files)
        await self._run_job("inference", inference_job(files, trained_repository(files), NEEDED), gateway)
        board.phase = "judgement"
        await self._processes.stop(WORKERS)
        (trained,) = files.trained(TRAINERS[0]).iterdir()
        await model.send_line(str(trained))
        judged = await self._event("model", "judged")
        alone = await self._event("model", "trained_alone")
        inference = score_predictions(files)
        result = Result(judged["score"], inference, alone["score"], prepared["baseline"], judged["example"])
        plot(board, result.network, result.alone, files.plot)
        return result

    def _environment(self) -> dict[str, str]:
        quiet = {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **quiet, "TMPDIR": str(self._work_dir)}  # torch leaves directories there

    async def _run_job(self, name: str, job: Mapping[str, Any], gateway: str) -> None:
        """Run a job to its end with a scheduler of this name."""
        config = {**node_config(self._files, name, gateway), "scheduler": {"job": job}}
        scheduler = await self._node(name, config, role="scheduler")
        with trio.move_on_after(_JOB_S) as limit:
            status = await scheduler.ended()
        if limit.cancelled_caught or status:
            problem = "did not end in time" if limit.cancelled_caught else "failed"
            raise DemoError(
                f"the job {problem}. The end of the scheduler's log, {scheduler.log}:\n{scheduler.last_lines()}"
            )

    async def _node(self, name: str, config: Mapping[str, Any], role: str | None = None) -> Process:
        path = write_config(self._files, name, config)
        return await self._processes.start(name, [*_DEVNET, role or name, "--config", path, "--events"])

    def _take(self, source: str, event: Mapping[str, Any]) -> None:
        self._events[source, event["event"]] = event
        self._board.take(source, event)
        self._changes.notify()

    async def _event(self, source: str, name: str) -> Mapping[str, Any]:
        """Wait for the first event of this name of a process, and return its latest one."""
        with trio.move_on_after(_READY_S):
            await self._changes.until(lambda: (source, name) in self._events)
            return self._events[source, name]
        log = self._files.logs / f"{source}.log"
        raise DemoError(f"{source} did not report {name!r} within {_READY_S:.0f} s; see its log, {log}")

    async def _until_ready(self, gateway: str) -> None:
        """Ask the workers and the data node for their health until all are healthy."""
        waiting = dict.fromkeys((*WORKERS, "data"), "not asked")
        peers = {name: peer for peer, name in self._board.peers.items()}
        config = NetworkConfig(gateways=(gateway,), listen_addresses=("/ip4/127.0.0.1/tcp/0",), exclude_cidr=())
        with trio.move_on_after(_READY_S):
            async with open_network(load_identity(self._files, "demo"), config) as network:
                await network.wait_ready()
                while waiting:
                    for name in tuple(waiting):
                        if await healthy(network, peers[name]):
                            del waiting[name]
                            self._board.add_line(f"{name} is ready")
                            if name in WORKERS:
                                self._board.workers[name].state = "ready"
                    await trio.sleep(_POLL_S)
            await self._event("data", "announced")
            return
        raise DemoError(f"not ready after {_READY_S:.0f} s: {', '.join(waiting)}; see {self._files.logs}")

    async def _refresh(self) -> None:
        while True:
            self._view.show(self._board)
            await trio.sleep(_REFRESH_S)

    async def _watch(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for number in signals:
            if scope.cancel_called:
                self._processes.hurry()
            self._board.add_line(f"{signal.Signals(number).name}: ending all processes")
            scope.cancel()


def _report(console: Console, files: Files, result: Result) -> bool:
    """Print the result and the paths of all files; return whether the model is good."""
    score = files.model.score
    same = "the same as" if result.same else "NOT the same as"
    verdict = score.verdict(result.network, result.alone, result.baseline)
    lines = [
        ("Trained over the network", f"[bold]{score.text(result.network)}[/]"),
        ("Inferred over the network", f"{score.text(result.inference)}, {same} in one process"),
        ("Trained in one process", f"{score.text(result.alone)}, on the same number of samples"),
        (files.model.baseline, score.text(result.baseline)),
        ("Verdict", f"[bold {'green]good' if verdict.good else 'red]not good enough'}[/]: {verdict.reason}"),
        *((heading, escape(line)) for heading, line in _written(result.example)),
        ("", ""),
        *((what, f"{_short(where)}  [dim]{how}[/]") for what, where, how in _places(files)),
    ]
    for heading, text in lines:
        console.print(f"{heading:26}{text}", highlight=False, soft_wrap=True)
    return verdict.good and result.same


def _written(example: str) -> list[tuple[str, str]]:
    lines = escaped_lines(example) if example else []
    return [("" if number else "It writes", line) for number, line in enumerate(lines)]


def _places(files: Files) -> list[tuple[str, Path, str]]:
    python = f"{files.model.loader}.from_pretrained(...)"
    return [
        ("Loss plot", files.plot, ""),
        ("Trained models", files.root / "models", python),
        ("Model hub", files.hub, f"hypha-devnet hub --root {_short(files.hub)}"),
        ("Slices", files.dataset, "safetensors.numpy.load_file(...)"),
        ("Predictions", files.predictions, f"one file for each slice of data/{files.held_out.name}"),
        ("Logs", files.logs, f"less {_short(files.logs)}/scheduler.log"),
        ("Configurations", files.configurations, "one for each node"),
        ("Certificates", files.certificates, "openssl x509 -text -noout -in ...-cert.pem"),
    ]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
