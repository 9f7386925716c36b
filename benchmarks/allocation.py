"""The time from a scheduler's advertisement to a worker's offer, both through the common gateway."""

import math
import time
from dataclasses import dataclass

import trio

from benchmarks.figures import Figure, percentile
from benchmarks.nodes import READY_S, SMALL_RESOURCES, BenchmarkError, Kind, Node, Scheduler, kinds, open_stage
from hypha_devnet.client import Request

PAUSE_S = 0.8
"""A worker holds an offer for half a second."""
NAMES = {"ours": "our worker", "rust": "Rust worker"}


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        lone_requests: Number of requests made one at a time.
        rate_per_s: Requests per second in the burst.
        burst_s: How long the burst takes.
    """

    lone_requests: int
    rate_per_s: int
    burst_s: int


FULL = Scale(lone_requests=100, rate_per_s=500, burst_s=5)
SMALL = Scale(lone_requests=2, rate_per_s=5, burst_s=1)


def run(scale: Scale) -> list[Figure]:
    """Return times in ms, and for the burst also the share of answered requests."""
    return trio.run(_run, scale)


async def _run(scale: Scale) -> list[Figure]:
    figures: list[Figure] = []
    async with open_stage() as (stage, scheduler):
        for kind in kinds():
            worker = stage.start_worker(f"worker-{kind}", kind, ["none"])
            await scheduler.until_ready(worker)
            await _until_answered(scheduler, worker)
            times_ms = await _lone(scheduler, worker, scale.lone_requests)
            figures += [
                Figure(f"{NAMES[kind]}, lone request, p50", percentile(times_ms, 50), "ms"),
                Figure(
                    f"{NAMES[kind]}, lone request, p99",
                    percentile(times_ms, 99),
                    "ms",
                    at_most=20 if kind == "ours" else None,
                ),
            ]
            figures += await _burst(scheduler, worker, kind, scale)
            await stage.stop(worker)
    return figures


async def _burst(scheduler: Scheduler, worker: Node, kind: Kind, scale: Scale) -> list[Figure]:
    times_ms, published_per_s = await _ask_in_a_burst(scheduler, worker, scale)
    answered = sum(time_ms < math.inf for time_ms in times_ms) / len(times_ms) * 100
    name = f"{NAMES[kind]}, {scale.rate_per_s} requests/s"
    return [
        Figure(f"{name}, published", published_per_s, "1/s"),
        Figure(f"{name}, answered", answered, "%", at_least=100 if kind == "ours" else None),
        Figure(f"{name}, p50", percentile(times_ms, 50), "ms"),
        Figure(f"{name}, p99", percentile(times_ms, 99), "ms"),
    ]


async def _until_answered(scheduler: Scheduler, worker: Node) -> None:
    """Advertise until the worker answers three requests in a row. At first, it cannot reach the scheduler."""
    with trio.move_on_after(READY_S):
        while math.inf in await _lone(scheduler, worker, number=3):
            worker.check()
        return
    raise BenchmarkError(f"{worker.name} does not answer within {READY_S:g} s:\n{worker.last_lines()}")


async def _lone(scheduler: Scheduler, worker: Node, number: int) -> list[float]:
    """Advertise one request at a time; return the milliseconds to the first offer for each."""
    times_ms = []
    for _ in range(number):
        started = time.monotonic()
        request = await scheduler.advertise(worker, SMALL_RESOURCES)
        await trio.sleep(PAUSE_S)
        times_ms.append(_first_offer_ms(request, started))
    return times_ms


async def _ask_in_a_burst(scheduler: Scheduler, worker: Node, scale: Scale) -> tuple[list[float], float]:
    """Advertise at a fixed rate; return the milliseconds to each first offer, and the rate that was achieved."""
    started = trio.current_time()
    published: list[tuple[Request, float]] = []
    for number in range(scale.rate_per_s * scale.burst_s):
        await trio.sleep_until(started + number / scale.rate_per_s)
        now = time.monotonic()
        published.append((await scheduler.advertise(worker, SMALL_RESOURCES), now))
    rate = len(published) / (trio.current_time() - started)
    await trio.sleep(2)
    return [_first_offer_ms(request, at) for request, at in published], rate


def _first_offer_ms(request: Request, published_at: float) -> float:
    """Return the milliseconds from publication to the first offer; infinity without one."""
    return (request.offers[0].arrived - published_at) * 1000 if request.offers else math.inf
