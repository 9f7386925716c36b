"""The rate at which a slice of 256 MiB moves from a data node through the job bridge to disk, by TCP and by QUIC."""

import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import trio

from benchmarks.figures import Figure
from benchmarks.nodes import Kind, Scheduler, Stage, job_of, kinds, open_stage, train_config

NAMES = {"ours": "our", "rust": "Rust"}


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        slice_bytes: Size of the slice.
        fetches: Number of fetches in each turn.
        turns: Number of turns of each pair of data node and worker.
    """

    slice_bytes: int
    fetches: int
    turns: int


FULL = Scale(slice_bytes=256 * 1024 * 1024, fetches=5, turns=2)
SMALL = Scale(slice_bytes=1024 * 1024, fetches=1, turns=1)


def run(scale: Scale) -> list[Figure]:
    """Return the median rates in MB/s. The pairs of data node and worker take turns."""
    return trio.run(_run, scale)


async def _run(scale: Scale) -> list[Figure]:
    return [*await _by(scale, "tcp", over="", least=3), *await _by(scale, "quic", over=", QUIC", least=1)]


async def _by(scale: Scale, transport: str, over: str, least: float) -> list[Figure]:
    """Measure one transport. `least` is what is promised for our nodes together, against the Rust ones."""
    pairs = [(data, worker) for data in kinds() for worker in kinds()]
    rates: dict[tuple[Kind, Kind], list[float]] = {pair: [] for pair in pairs}
    async with open_stage(transport) as (stage, scheduler):
        dataset = stage.directory / "slices"
        dataset.mkdir()
        make_slice(dataset / "0.safetensors", scale.slice_bytes)
        providers = {kind: stage.start_data_node(f"data-{kind}", kind, dataset) for kind in kinds()}
        await scheduler.until_ready(*providers.values())
        for turn in range(scale.turns):
            for pair in pairs:
                scheduler.provider = providers[pair[0]].peer_id
                rates[pair] += await _fetch(stage, scheduler, pair[1], f"{'-'.join(pair)}-{turn}", scale)
    medians = {pair: statistics.median(values) for pair, values in rates.items()}
    figures = [
        Figure(f"{NAMES[data]} data node to {NAMES[worker]} worker{over}", rate, "MB/s")
        for (data, worker), rate in medians.items()
    ]
    if ("rust", "rust") in medians:
        rust = medians["rust", "rust"]
        figures += [
            Figure(f"Rust data node: our worker / Rust worker{over}", medians["rust", "ours"] / rust, "x", at_least=1),
            Figure(f"all ours / all Rust{over}", medians["ours", "ours"] / rust, "x", at_least=least),
        ]
    return figures


async def _fetch(stage: Stage, scheduler: Scheduler, kind: Kind, name: str, scale: Scale) -> list[float]:
    report = stage.directory / f"{name}.json"
    worker = stage.start_worker(name, kind, ["fetch", str(report), str(scale.fetches)])
    await scheduler.until_ready(worker)
    data = scheduler.source("slices")
    await scheduler.hire(worker, job_of(uuid4(), name, train_config(data, scheduler.network.peer_id)))
    seconds = json.loads(await scheduler.report(report, worker, timeout_s=120))
    await stage.stop(worker)
    return [scale.slice_bytes / 1e6 / each for each in seconds]


def make_slice(path: Path, size_bytes: int) -> None:
    """Write a file with one tensor of random bytes."""
    tensor = {"data": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}
    header = json.dumps(tensor).encode()
    block = os.urandom(1024 * 1024)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(size_bytes // len(block)):
            file.write(block)
