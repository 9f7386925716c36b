"""The metrics of training that jobs report."""

import math
from uuid import uuid4

from hypha_messages.progress import Metrics, Progress, Status
from hypha_telemetry import node_metrics
from hypha_worker.training import TrainingMetrics
from support import jobs
from support.recorded_metrics import RecordedMetrics
from support.set_clock import SetClock

BATCH = Progress(status=Status(batch_size=8))


def test_batches_samples_rounds_and_loss_are_those_that_the_job_reports() -> None:
    metrics, job = RecordedMetrics(), jobs.job()
    training = TrainingMetrics(metrics.telemetry)
    training.add(job)
    assert metrics.of(node_metrics.LOSS) == {}
    for report in (BATCH, BATCH, Progress(metrics=Metrics(round=3, metrics={"loss": 0.5, "other": 1}))):
        training.record(job.task_id, report)
    task = (str(job.task_id),)
    assert metrics.of(node_metrics.BATCHES) == {task: 2}
    assert metrics.of(node_metrics.SAMPLES) == {task: 16}
    assert metrics.of(node_metrics.ROUND) == {task: 3}
    assert metrics.of(node_metrics.LOSS) == {task: 0.5}
    training.record(job.task_id, Progress(metrics=Metrics(round=4, metrics={"loss": math.nan})))
    assert metrics.of(node_metrics.LOSS) == {task: 0.5}


def test_an_outer_step_lasts_from_update_to_update_and_the_job_waits_for_a_part_of_it() -> None:
    metrics, job, clock = RecordedMetrics(), jobs.job(), SetClock(0.0)
    training = TrainingMetrics(metrics.telemetry, clock)
    training.add(job)
    for at_s, stage in ((100, "update"), (103, "update-received"), (150, "update"), (151, "update-received")):
        clock.now = at_s
        training.record(job.task_id, Progress.model_validate(stage))
    executor = (str(job.spec.descriptor),)
    assert metrics.sums_of(node_metrics.OUTER_STEP) == {executor: 151}
    assert metrics.of(node_metrics.OUTER_STEP) == {executor: 2}
    assert metrics.sums_of(node_metrics.OUTER_STEP_WAIT) == {executor: 4}


def test_a_job_that_has_ended_or_is_unknown_has_no_series() -> None:
    metrics, job = RecordedMetrics(), jobs.job()
    training = TrainingMetrics(metrics.telemetry)
    training.add(job)
    training.record(job.task_id, BATCH)
    training.record(uuid4(), BATCH)
    assert len(metrics.of(node_metrics.BATCHES)) == 1
    training.remove(job.task_id)
    assert metrics.of(node_metrics.BATCHES) == {}
