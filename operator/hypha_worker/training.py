"""Exports how the training of each job goes, from what the job reports to its scheduler."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Final
from uuid import UUID

from opentelemetry.metrics import Observation

from hypha_telemetry import node_metrics
from hypha_telemetry.metric import Metric
from hypha_worker.job import Job
from hypha_worker.progress import Report
from hypha_worker.telemetry import Telemetry

LOSS: Final = "loss"
"""The name of the loss among the metrics of a job."""


@dataclass
class _Training:
    """What a job has reported. Times are monotonic seconds."""

    executor: str
    step_began_s: float
    wait_began_s: float | None = None
    batches: int = 0
    samples: int = 0
    round: int | None = None
    loss: float | None = None


class TrainingMetrics:
    """The metrics of the jobs that run. A job chooses what it reports, so only figures are taken from it."""

    def __init__(self, telemetry: Telemetry, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._jobs: dict[UUID, _Training] = {}
        self._step = telemetry.histogram(node_metrics.OUTER_STEP)
        self._wait = telemetry.histogram(node_metrics.OUTER_STEP_WAIT)
        readings: tuple[tuple[Metric, Callable[[_Training], float | None]], ...] = (
            (node_metrics.BATCHES, lambda training: training.batches),
            (node_metrics.SAMPLES, lambda training: training.samples),
            (node_metrics.ROUND, lambda training: training.round),
            (node_metrics.LOSS, lambda training: training.loss),
        )
        for metric, reading in readings:
            telemetry.observe(metric, partial(self._observe, reading))

    def add(self, job: Job) -> None:
        """Export what this job reports from now on."""
        self._jobs[job.task_id] = _Training(str(job.spec.descriptor), self._clock())

    def remove(self, task_id: UUID) -> None:
        """Forget a job that has ended."""
        self._jobs.pop(task_id, None)

    def record(self, task_id: UUID, report: Report) -> None:
        """Record a report."""
        if (training := self._jobs.get(task_id)) is None:
            return
        if report.status is not None:
            training.batches += 1
            training.samples += report.status.batch_size
        if report.metrics is not None:
            training.round = report.metrics.round
            loss = report.metrics.metrics.get(LOSS, math.nan)
            training.loss = loss if math.isfinite(loss) else training.loss
        if report.stage == "update":
            training.wait_began_s = self._clock()
        elif report.stage == "update-received":
            self._end_step(training)

    def _end_step(self, training: _Training) -> None:
        now_s, executor = self._clock(), {"executor": training.executor}
        self._step.record(now_s - training.step_began_s, executor)
        if training.wait_began_s is not None:
            self._wait.record(now_s - training.wait_began_s, executor)
        training.step_began_s, training.wait_began_s = now_s, None

    def _observe(self, reading: Callable[[_Training], float | None]) -> Iterable[Observation]:
        values = ((task_id, reading(training)) for task_id, training in list(self._jobs.items()))
        return [Observation(value, {"task": str(task_id)}) for task_id, value in values if value is not None]
