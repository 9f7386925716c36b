"""The node's side of the protocol by which a job reports its progress and its scheduler controls it.

Only this module knows the messages of `/hypha-progress/0.0.1`. Another control protocol would be a module like it.
"""

import math
from typing import Any, Final
from uuid import UUID

from hypha_contracts.text import escaped
from hypha_messages.progress import PROGRESS, Progress, ProgressResponse, ReportProgress
from hypha_resources.job import Progress as JobProgress

Report = Progress
"""What a job reports to its scheduler."""

_MAX_METRICS: Final = 32
_MAX_NAME_CHARS: Final = 63
_INTERVAL_S: Final = 5.0
_MAX_WRITES_PER_S: Final = 10.0


def scheduler_request(job_id: UUID, report: Report) -> tuple[Any, ReportProgress, type[ProgressResponse]]:
    """Return the protocol, the request that passes a job's report on to its scheduler, and the type of the answer."""
    return PROGRESS, ReportProgress(job_id=job_id, progress=report), ProgressResponse


def interval_s(jobs: int) -> float:
    """Return the interval between two writes of one job's progress. It grows with the jobs, to limit all writes."""
    return max(_INTERVAL_S, jobs / _MAX_WRITES_PER_S)


class ProgressTally:
    """Sums up the reports of one job. Times are monotonic seconds."""

    def __init__(self, now: float, earlier: JobProgress | None = None) -> None:
        self._progress = earlier or JobProgress()
        self._rated_at = now
        self._rated_samples = self._progress.samples

    def add(self, report: Report) -> None:
        """Add a report. The job chooses its metrics, so only a limited number with short, printable names is kept."""
        if report.status is not None:
            batches, samples = self._progress.batches + 1, self._progress.samples + report.status.batch_size
            self._progress = self._progress.model_copy(update={"batches": batches, "samples": samples})
        if report.metrics is not None:
            fitting = {
                name: float(f"{value:.4g}")  # kubectl prints them in a column
                for name, value in report.metrics.metrics.items()
                if math.isfinite(value) and len(name) <= _MAX_NAME_CHARS and name == escaped(name)
            }
            metrics = dict(list((self._progress.metrics | fitting).items())[:_MAX_METRICS])
            self._progress = self._progress.model_copy(update={"round": report.metrics.round, "metrics": metrics})

    @property
    def progress(self) -> JobProgress:
        """The progress, with the rate that `sum_up` returned last."""
        return self._progress

    def sum_up(self, now: float) -> JobProgress:
        """Return the progress, with the rate since the last call."""
        if now > self._rated_at:
            rate = (self._progress.samples - self._rated_samples) / (now - self._rated_at)
            self._progress = self._progress.model_copy(update={"samples_per_second": round(rate, 3)})
            self._rated_at, self._rated_samples = now, self._progress.samples
        return self._progress
