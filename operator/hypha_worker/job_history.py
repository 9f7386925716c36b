"""What the jobs of this node have reported, for people: the state of each, its progress and its loss curve.

Pure: the caller provides the clocks. Everything in it is bounded, except that each live job has a record.
"""

import math
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import UUID

from hypha_contracts.text import escaped
from hypha_resources.job import Progress
from hypha_worker.job import Job
from hypha_worker.progress import ProgressTally, Report, stated_batches
from hypha_worker.training import LOSS

MAX_ENDED: Final = 20
MAX_POINTS: Final = 128
MAX_REASON_CHARS: Final = 512
_MAX_NAME_CHARS: Final = 128
_RATE_EVERY_S: Final = 5.0
_RATE_MARKS: Final = 12

Phase = Literal["starting", "running", "finished", "failed"]


class Curve:
    """A series of at most `MAX_POINTS` points. Once it is full, each point becomes the mean of two."""

    def __init__(self) -> None:
        self._x, self._y = array("d"), array("d")
        self._size = 1
        self._pending: list[tuple[float, float]] = []

    def add(self, x: float, y: float) -> None:
        """Add a value. One that is not finite is left out."""
        if not math.isfinite(y):
            return
        self._pending.append((x, y))
        if len(self._pending) == self._size:
            self._append(*_mean(self._pending))
            self._pending.clear()

    def points(self) -> tuple[list[float], list[float]]:
        """Return the x and the y of each point."""
        x, y = self._x.tolist(), self._y.tolist()
        if self._pending:
            last_x, last_y = _mean(self._pending)
            return [*x, last_x], [*y, last_y]
        return x, y

    def _append(self, x: float, y: float) -> None:
        self._x.append(x)
        self._y.append(y)
        if len(self._x) >= MAX_POINTS:
            for values in (self._x, self._y):
                values[:] = array("d", ((a + b) / 2 for a, b in zip(values[::2], values[1::2], strict=True)))
            self._size *= 2


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of some points, with the digits that people read."""
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return round(x, 1), float(f"{y:.5g}")


class Rate:
    """The rate at which a sum grows, over the last minute. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, 0)], maxlen=_RATE_MARKS)

    def add(self, now: float, total: int) -> None:
        """Record the sum."""
        if now - self._marks[-1][0] >= _RATE_EVERY_S:
            self._marks.append((now, total))

    def per_s(self, now: float, total: int) -> float | None:
        """Return the rate, or None as long as nothing has been counted or too little time has passed."""
        then, before = self._marks[0]
        return round((total - before) / (now - then), 3) if total and now - then >= 1 else None


@dataclass
class JobRecord:
    """A job that runs or has ended. Times are seconds since the epoch. Text in it is escaped and cut.

    Attributes:
        began: when it was dispatched.
        reason: why it failed.
        loss: by seconds since the node has known the job.
    """

    task_id: UUID
    job_id: UUID
    executor: str
    scheduler: str
    began: float
    tally: ProgressTally
    rate: Rate
    known_since: float
    phase: Phase = "starting"
    reason: str = ""
    ended: float | None = None
    loss: Curve = field(default_factory=Curve)

    @property
    def progress(self) -> Progress:
        """What it has reported, without a rate."""
        return self.tally.progress


class JobHistory:
    """The live jobs, and the last `MAX_ENDED` of those that ended."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._live: dict[UUID, JobRecord] = {}
        self._ended: deque[JobRecord] = deque(maxlen=MAX_ENDED)

    @property
    def newest_first(self) -> list[JobRecord]:
        """The live jobs, then those that ended."""
        return [*reversed(self._live.values()), *reversed(self._ended)]

    def add(self, job: Job, *, started: bool = False) -> None:
        """Follow a job that starts, or an adopted one whose executor may have `started`."""
        now = self._clock()
        self._live[job.task_id] = JobRecord(
            job.task_id,
            job.spec.job_id,
            escaped(str(job.spec.descriptor), _MAX_NAME_CHARS),
            job.scheduler,
            job.began or self._wall_clock(),
            ProgressTally(now, total_batches=stated_batches(job.spec)),
            Rate(now),
            now,
            "running" if started else "starting",
        )

    def on_started(self, task_id: UUID) -> None:
        """Record that the executor of a job runs."""
        if record := self._live.get(task_id):
            record.phase = "running"

    def on_report(self, task_id: UUID, report: Report) -> None:
        """Record what a job reported to its scheduler."""
        if (record := self._live.get(task_id)) is None:
            return
        now = self._clock()
        record.tally.add(report, now)
        record.rate.add(now, record.progress.samples)
        if report.metrics is not None:
            record.loss.add(now - record.known_since, report.metrics.metrics.get(LOSS, math.nan))

    def on_end(self, task_id: UUID, failure: str | None) -> None:
        """Record that a job ended, and if it failed, why."""
        if record := self._live.pop(task_id, None):
            record.phase = "finished" if failure is None else "failed"
            record.reason = escaped(failure or "", MAX_REASON_CHARS)
            record.ended = self._wall_clock()
            record.tally.end()
            self._ended.append(record)

    def estimated_end(self, record: JobRecord) -> float | None:
        """Return when a live job has trained the batches that it states, in seconds since the epoch, or None."""
        end = record.tally.estimated_end(self._clock(), self._wall_clock())
        return end.timestamp() if end else None

    def samples_per_second(self, record: JobRecord) -> float | None:
        """Return how fast a live job processes samples, over the last minute."""
        return record.rate.per_s(self._clock(), record.progress.samples) if record.ended is None else None
