"""The duration of an outer step of two trainers and a parameter server: first byte sent to last update received.

The trainers run the same program under all workers. It only sends and waits.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from benchmarks.figures import Figure
from benchmarks.nodes import Kind, Scheduler, Stage, kinds, open_stage

NAMES = {"ours": "all ours", "rust": "all Rust"}


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        steps: Number of steps in each turn, by the size of the pseudo-gradient in MB.
        turns: Number of turns of each kind of node.
    """

    steps: Mapping[int, int]
    turns: int


FULL = Scale(steps={64: 5, 256: 3}, turns=2)
SMALL = Scale(steps={1: 1}, turns=1)


def run(scale: Scale) -> list[Figure]:
    """Return the median seconds. The two kinds of nodes take turns."""
    return trio.run(_run, scale)


async def _run(scale: Scale) -> list[Figure]:
    figures = []
    for megabytes, steps in scale.steps.items():
        seconds: dict[Kind, list[float]] = {kind: [] for kind in kinds()}
        for _ in range(scale.turns):
            for kind in kinds():
                async with open_stage() as (stage, scheduler):
                    seconds[kind] += await _steps(stage, scheduler, kind, megabytes, steps)
        medians = {kind: statistics.median(values) for kind, values in seconds.items()}
        figures += [Figure(f"{megabytes} MB, {NAMES[kind]}", value, "s") for kind, value in medians.items()]
        if "rust" in medians:
            figures.append(Figure(f"{megabytes} MB, ours / Rust", medians["ours"] / medians["rust"], "x", at_most=0.7))
    return figures


async def _steps(stage: Stage, scheduler: Scheduler, kind: Kind, megabytes: int, steps: int) -> list[float]:
    meeting = stage.directory / "meeting"
    meeting.mkdir()
    (meeting / "size").write_text(str(megabytes * 1_000_000))
    names = [f"trainer-{number}" for number in range(2)]
    reports = [stage.directory / f"{name}.json" for name in names]
    trainers = [
        stage.start_worker(name, kind, ["outer-steps", str(report), str(steps), str(meeting)])
        for name, report in zip(names, reports, strict=True)
    ]
    server = stage.start_worker("aggregate", kind, None)
    await scheduler.until_ready(*trainers, server)
    await scheduler.train(trainers, server, "none")
    texts = [await scheduler.report(report, *trainers, server, timeout_s=60 * steps) for report in reports]
    await stage.stop(*trainers, server)
    return [
        max(received for _, received in step) - min(sent for sent, _ in step)
        for step in zip(*map(json.loads, texts), strict=True)
    ]
