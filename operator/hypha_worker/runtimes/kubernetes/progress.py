"""How far a job is, summed up from what it reports to its scheduler."""

import math
from typing import Final

from hypha_messages.progress import Progress as Report
from hypha_resources.job import Progress

_MAX_METRICS: Final = 32
_LONGEST_NAME: Final = 63
_INTERVAL_S: Final = 5.0
_MOST_PER_S: Final = 10.0


def interval_s(jobs: int) -> float:
    """Return how long each of so many jobs waits after it was shown: few are shown often, many burden nobody."""
    return max(_INTERVAL_S, jobs / _MOST_PER_S)


class ProgressTally:
    """Adds up the reports of one job; `now` is monotonic seconds."""

    def __init__(self, now: float, earlier: Progress | None = None) -> None:
        self._progress = earlier or Progress()
        self._rated_at = now
        self._rated_samples = self._progress.samples

    def add(self, report: Report) -> None:
        """Take in a report; its metrics are the job's own text, of which a few short ones are kept."""
        if report.status is not None:
            self._progress = self._progress.model_copy(
                update={
                    "batches": self._progress.batches + 1,
                    "samples": self._progress.samples + report.status.batch_size,
                }
            )
        if report.metrics is not None:
            fitting = {
                name: float(f"{value:.4g}")  # people read them, in a column
                for name, value in report.metrics.metrics.items()
                if math.isfinite(value) and len(name) <= _LONGEST_NAME
            }
            metrics = dict(list((self._progress.metrics | fitting).items())[:_MAX_METRICS])
            self._progress = self._progress.model_copy(update={"round": report.metrics.round, "metrics": metrics})

    def sum_up(self, now: float) -> Progress:
        """Return where the job is, and how fast it was since the last time."""
        if now > self._rated_at:
            rate = (self._progress.samples - self._rated_samples) / (now - self._rated_at)
            self._progress = self._progress.model_copy(update={"samples_per_second": round(rate, 3)})
            self._rated_at, self._rated_samples = now, self._progress.samples
        return self._progress
