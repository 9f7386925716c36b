"""The CPU time that telemetry costs a node, its bridge and its executor while they fetch slices of 256 MiB.

A worker with and one without telemetry take turns at fetching. What a worker uses while the other fetches counts, too.
The one with telemetry exports metrics, log and every trace, the metrics once a second, to a server on this machine that
takes everything.
"""

import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import psutil
import trio

from benchmarks import fetch
from benchmarks.fetch import Scale, make_slice
from benchmarks.figures import Figure
from benchmarks.nodes import Node, Scheduler, Stage, job_of, open_stage, train_config

FULL = Scale(slice_bytes=fetch.FULL.slice_bytes, fetches=2, turns=100)
SMALL = fetch.SMALL
TURN_S = 120.0
_TICK_S = 0.01
"""The accuracy of CPU times. A small run may take less."""
_RESAMPLES = 10_000


def run(scale: Scale) -> list[Figure]:
    """Return CPU seconds per GB, and by how much telemetry raises them."""
    return trio.run(_run, scale)


async def _run(scale: Scale) -> list[Figure]:
    with collector() as endpoint:
        async with open_stage() as (stage, scheduler):
            dataset = stage.directory / "slices"
            dataset.mkdir()
            make_slice(dataset / "0.safetensors", scale.slice_bytes)
            provider = stage.start_data_node("data", "ours", dataset)
            await scheduler.until_ready(provider)
            scheduler.provider = provider.peer_id
            workers = [
                await _hire(stage, scheduler, "without", scale),
                await _hire(stage, scheduler, "with", scale, telemetry_endpoint=endpoint),
            ]
            turns = await _cpu_s_of_turns(workers, scale)
    gigabytes = scale.fetches * scale.slice_bytes / 1e9
    without, with_telemetry = ([cpu_s / gigabytes for cpu_s in each] for each in zip(*turns, strict=True))
    low, high = interval(without, with_telemetry)
    return [
        Figure("without telemetry, median", statistics.median(without), "CPU s/GB"),
        Figure("with telemetry, median", statistics.median(with_telemetry), "CPU s/GB"),
        Figure("telemetry adds, lower end of the 95 % interval", 100 * low, "%"),
        Figure("telemetry adds, upper end of the 95 % interval", 100 * high, "%", at_most=2),
    ]


@dataclass(frozen=True)
class _Worker:
    """A worker with one job, which fetches slice N of all turns when the file N is in `turns`."""

    node: Node
    turns: Path

    async def fetch(self, slices: Iterable[int]) -> None:
        for index in slices:
            turn = self.turns / str(index)
            turn.touch()
            while turn.exists():
                self.node.check()
                await trio.sleep(0.01)


async def _hire(stage: Stage, scheduler: Scheduler, name: str, scale: Scale, **settings: Any) -> _Worker:
    turns = stage.directory / f"turns-{name}"
    turns.mkdir()
    fetches = (
        scale.fetches * (scale.turns + 1) + 1
    )  # one that it never makes, so that the job goes on until all is read
    arguments = ["fetch", str(stage.directory / f"{name}.json"), str(fetches), str(turns)]
    node = stage.start_worker(name, "ours", arguments, {"OTEL_METRIC_EXPORT_INTERVAL": "1000"}, **settings)
    await scheduler.until_ready(node)
    data = scheduler.source("slices")
    await scheduler.hire(node, job_of(uuid4(), name, train_config(data, scheduler.network.peer_id)))
    return _Worker(node, turns)


async def _cpu_s_of_turns(workers: Sequence[_Worker], scale: Scale) -> list[list[float]]:
    """Let the workers take turns; return what each used in each turn. The first turn, a warm-up, is left out."""
    readings = []
    for turn in range(scale.turns + 1):
        for worker in workers:
            with trio.fail_after(TURN_S):
                await worker.fetch(range(turn * scale.fetches, (turn + 1) * scale.fetches))
        readings.append([used_s(psutil.Process(worker.node.process.pid)) for worker in workers])
    return [[b - a for a, b in zip(*pair, strict=True)] for pair in pairwise(readings)]


def used_s(process: psutil.Process) -> float:
    """Return the CPU time of a process and of its descendants."""
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def interval(without: Sequence[float], with_telemetry: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the relative increase, by resampling the pairs."""
    generator = random.Random(0)
    pairs = list(zip(without, with_telemetry, strict=True))
    increases = []
    for _ in range(_RESAMPLES):
        drawn = generator.choices(pairs, k=len(pairs))
        increases.append(sum(b for _, b in drawn) / max(sum(a for a, _ in drawn), _TICK_S) - 1)
    increases.sort()
    return increases[int(0.025 * _RESAMPLES)], increases[int(0.975 * _RESAMPLES)]


@contextmanager
def collector() -> Iterator[str]:
    """Run a server that takes everything; yield its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
