"""The node's side of the protocol by which a job reports its progress and its scheduler controls it.

Only this module knows the messages of `/hypha-progress/0.0.1`. Another control protocol would be a module like it.
"""

import math
from collections import deque
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from hypha_contracts.text import escaped
from hypha_messages.job import JobSpec, TrainConfig, WarmupSchedule
from hypha_messages.progress import PROGRESS, Progress, ProgressResponse, ReportProgress
from hypha_resources.job import Progress as JobProgress

Report = Progress
"""What a job reports to its scheduler."""

_MAX_METRICS: Final = 32
_MAX_NAME_CHARS: Final = 63
_INTERVAL_S: Final = 5.0
_RATED_ROUNDS: Final = 10
_MIN_RATED_S: Final = 30.0
"""How long batches are counted before the end is estimated."""
_MAX_LEFT_S: Final = 10 * 366 * 86_400.0
"""An end that is farther away says nothing, and might be no date."""
_MAX_WRITES_PER_S: Final = 10.0


def scheduler_request(job_id: UUID, report: Report) -> tuple[Any, ReportProgress, type[ProgressResponse]]:
    """Return the protocol, the request that passes a job's report on to its scheduler, and the type of the answer."""
    return PROGRESS, ReportProgress(job_id=job_id, progress=report), ProgressResponse


def interval_s(jobs: int) -> float:
    """Return the interval between two writes of one job's progress. It grows with the jobs, to limit all writes."""
    return max(_INTERVAL_S, jobs / _MAX_WRITES_PER_S)


def stated_batches(spec: JobSpec) -> int | None:
    """Return over how many batches a job's learning rate changes, or None if it does not state that."""
    config = spec.executor.config
    schedule = config.scheduler if isinstance(config, TrainConfig) else None
    return schedule.training_steps if isinstance(schedule, WarmupSchedule) and schedule.training_steps > 0 else None


class ProgressTally:
    """Sums up the reports of one job. Times are monotonic seconds.

    Args:
        now: the time.
        earlier: what an earlier process of this node has summed up.
        total_batches: how many batches the job states.
    """

    def __init__(self, now: float, earlier: JobProgress | None = None, total_batches: int | None = None) -> None:
        self._progress = (earlier or JobProgress()).model_copy(update={"total_batches": total_batches})
        self._rated_at = now
        self._rated_samples = self._progress.samples
        self._first_batch: tuple[float, int] | None = None
        self._rounds: deque[tuple[float, int]] = deque(maxlen=_RATED_ROUNDS + 1)
        self._has_ended = False

    def end(self) -> None:
        """Record that the job has ended, however many batches are left."""
        self._has_ended = True

    def add(self, report: Report, now: float) -> None:
        """Add a report. The job chooses its metrics, so only a limited number with short, printable names is kept."""
        if report.status is not None:
            batches, samples = self._progress.batches + 1, self._progress.samples + report.status.batch_size
            self._progress = self._progress.model_copy(update={"batches": batches, "samples": samples})
            self._first_batch = self._first_batch or (now, batches)
        if report.metrics is not None:
            fitting = {
                name: float(f"{value:.4g}")  # kubectl prints them in a column
                for name, value in report.metrics.metrics.items()
                if math.isfinite(value) and len(name) <= _MAX_NAME_CHARS and name == escaped(name)
            }
            metrics = dict(list((self._progress.metrics | fitting).items())[:_MAX_METRICS])
            self._progress = self._progress.model_copy(update={"round": report.metrics.round, "metrics": metrics})
            self._rate_rounds(report.metrics.round, now)

    @property
    def progress(self) -> JobProgress:
        """The progress, with the rates that `sum_up` returned last."""
        return self._progress

    def sum_up(self, now: float, wall_now: float) -> JobProgress:
        """Return the progress with the rates and the end as of now. `wall_now` is in seconds since the epoch."""
        changed: dict[str, Any] = {"estimated_end": self.estimated_end(now, wall_now)}
        if now > self._rated_at:
            rate = (self._progress.samples - self._rated_samples) / (now - self._rated_at)
            changed["samples_per_second"] = round(rate, 3) if self._progress.samples else None  # as of an aggregate job
            self._rated_at, self._rated_samples = now, self._progress.samples
        self._progress = self._progress.model_copy(update=changed)
        return self._progress

    def estimated_end(self, now: float, wall_now: float) -> datetime | None:
        """Return when the stated batches are done at the mean rate so far; None if nothing says so or it has ended."""
        total, batches = self._progress.total_batches, self._progress.batches
        if self._has_ended or total is None or batches >= total or self._first_batch is None:
            return None
        began, first = self._first_batch
        if now - began < _MIN_RATED_S or batches == first:
            return None
        left_s = (total - batches) * (now - began) / (batches - first)
        return datetime.fromtimestamp(round(wall_now + left_s), UTC) if left_s < _MAX_LEFT_S else None

    def _rate_rounds(self, number: int, now: float) -> None:
        """Record when a round was reported first. A job that counts from a smaller number again begins anew."""
        if self._rounds and number < self._rounds[-1][1]:
            self._rounds.clear()
        if not self._rounds or number > self._rounds[-1][1]:
            self._rounds.append((now, number))
        (began, first), (ended, last) = self._rounds[0], self._rounds[-1]
        if ended > began:
            rate = float(f"{(last - first) / (ended - began) * 3600:.4g}")
            self._progress = self._progress.model_copy(update={"rounds_per_hour": rate})
