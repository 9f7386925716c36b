"""`python -m support.profiled_node ARGS`: `hypha-worker ARGS` that writes a profile to the file PROFILE when it ends.

Every few milliseconds of CPU time, a signal interrupts the program and records its stack. An instrument of trio
measures how long each task runs before it yields.
"""

import atexit
import functools
import gc
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from hypha_worker.cli import main

EVERY_S = 0.005
LONG_S = 0.02


class Steps(trio.abc.Instrument):
    """How often a task of a kind ran for longer than LONG_S before it yielded, and for how long at most.

    `passes` has the duration of each pass of the event loop, and `spent` the CPU seconds of each kind of task.
    """

    def __init__(self) -> None:
        self.long: dict[str, list[float]] = {}
        self.count = 0
        self.cpu_s = 0.0
        self.passes: list[float] = []
        self.spent: Counter[str] = Counter()
        self._started = 0.0
        self._pass_started = 0.0

    def after_io_wait(self, timeout: float) -> None:
        self._pass_started = time.thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self.passes.append(time.thread_time() - self._pass_started)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._started = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.thread_time() - self._started
        self.count += 1
        self.cpu_s += took
        self.spent[task.name] += took
        if took > LONG_S:
            self.long.setdefault(task.name, []).append(round(took, 4))


class Collections:
    """The CPU seconds of each of the garbage collector's runs, by generation."""

    def __init__(self) -> None:
        self.took: dict[int, list[float]] = {0: [], 1: [], 2: []}
        self._started = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.thread_time()
        else:
            self.took[info["generation"]].append(time.thread_time() - self._started)

    def lines(self) -> list[str]:
        return [
            f"{len(took)} collections of generation {generation}, {sum(took):.2f} s, {max(took) * 1000:.1f} ms at most"
            for generation, took in self.took.items()
            if took
        ]


own: Counter[str] = Counter()
inclusive: Counter[str] = Counter()
steps = Steps()
collections = Collections()


def place(frame: FrameType) -> str:
    code = frame.f_code
    return f"{Path(code.co_filename).parent.name}/{Path(code.co_filename).name}:{code.co_qualname}"


def record(_: int, frame: FrameType | None) -> None:
    if frame is None:
        return
    own[f"{place(frame)}:{frame.f_lineno}"] += 1
    seen = set()
    while frame is not None:
        seen.add(place(frame))
        frame = frame.f_back
    inclusive.update(seen)


def write() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    total = max(1, sum(own.values()))
    long = sorted(((max(v), len(v), k) for k, v in steps.long.items()), reverse=True)
    lines = [f"profile: {total} samples, {steps.count} steps of tasks, which took {steps.cpu_s:.1f} CPU seconds"]
    lines += [f"{worst * 1000:7.0f} ms at most in {n:5} steps longer than 20 ms: {k}" for worst, n, k in long[:20]]
    lines += collections.lines()
    passes = sorted(steps.passes) or [0.0]
    quantiles = ", ".join(f"{q:g}: {passes[int(q * (len(passes) - 1))] * 1000:.1f} ms" for q in (0.5, 0.9, 0.99, 1))
    lines += [f"{len(passes)} passes of the event loop, quantiles of their duration: {quantiles}", "time of tasks:"]
    lines += [f"{100 * spent / steps.cpu_s:6.1f}%  {name}" for name, spent in steps.spent.most_common(40)]
    lines += ["own time, by line:", *(f"{100 * n / total:6.1f}%  {where}" for where, n in own.most_common(40))]
    lines += ["with callees:", *(f"{100 * n / total:6.1f}%  {where}" for where, n in inclusive.most_common(80))]
    Path(os.environ["PROFILE"]).write_text("\n".join(lines))


run = trio.run


@functools.wraps(run)
def profiled(*args: Any, **options: Any) -> Any:
    signal.signal(signal.SIGPROF, record)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    atexit.register(write)
    gc.callbacks.append(collections)
    return run(*args, **options, instruments=[steps])


if __name__ == "__main__":
    trio.run = profiled
    sys.exit(main())
