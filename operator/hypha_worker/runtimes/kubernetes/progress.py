"""Sums up the progress of a job from its reports to the scheduler."""

import math
from typing import Final

from hypha_messages.progress import Progress as Report
from hypha_resources.job import Progress

_MAX_METRICS: Final = 32
_MAX_NAME_CHARS: Final = 63
_INTERVAL_S: Final = 5.0
_MAX_WRITES_PER_S: Final = 10.0


def interval_s(jobs: int) -> float:
    """Return the interval between two writes of one job's progress. It grows with the jobs, to limit all writes."""
    return max(_INTERVAL_S, jobs / _MAX_WRITES_PER_S)


class ProgressTally:
    """Sums up the reports of one job. Times are monotonic seconds."""

    def __init__(self, now: float, earlier: Progress | None = None) -> None:
        self._progress = earlier or Progress()
        self._rated_at = now
        self._rated_samples = self._progress.samples

    def add(self, report: Report) -> None:
        """Add a report. Of its metrics, whose names the job chooses, a limited number with short names is kept."""
        if report.status is not None:
            self._progress = self._progress.model_copy(
                update={
                    "batches": self._progress.batches + 1,
                    "samples": self._progress.samples + report.status.batch_size,
                }
            )
        if report.metrics is not None:
            fitting = {
                name: float(f"{value:.4g}")  # kubectl prints them in a column
                for name, value in report.metrics.metrics.items()
                if math.isfinite(value) and len(name) <= _MAX_NAME_CHARS
            }
            metrics = dict(list((self._progress.metrics | fitting).items())[:_MAX_METRICS])
            self._progress = self._progress.model_copy(update={"round": report.metrics.round, "metrics": metrics})

    def sum_up(self, now: float) -> Progress:
        """Return the progress, with the rate since the last call."""
        if now > self._rated_at:
            rate = (self._progress.samples - self._rated_samples) / (now - self._rated_at)
            self._progress = self._progress.model_copy(update={"samples_per_second": round(rate, 3)})
            self._rated_at, self._rated_samples = now, self._progress.samples
        return self._progress
