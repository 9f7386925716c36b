import math
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages.job import JobSpec
from hypha_messages.progress import Metrics, Progress, Status
from hypha_worker.job import Job
from hypha_worker.job_history import MAX_ENDED, MAX_POINTS, MAX_REASON_CHARS, Curve, JobHistory, Rate
from support import jobs
from support.set_clock import SetClock

BATCH = Progress(status=Status(batch_size=8))


@pytest.fixture
def clock() -> SetClock:
    return SetClock(100.0)


@pytest.fixture
def history(clock: SetClock) -> JobHistory:
    return JobHistory(clock, lambda: 1e9 + clock.now)


def loss(value: float, round_: int = 1) -> Progress:
    return Progress(metrics=Metrics(round=round_, metrics={"loss": value}))


def test_a_job_starts_runs_and_ends(history: JobHistory, clock: SetClock) -> None:
    job = jobs.job()
    history.add(job)
    (record,) = history.newest_first
    assert (record.task_id, record.phase, record.scheduler) == (job.task_id, "starting", job.scheduler)
    history.on_started(job.task_id)
    assert record.phase == "running"
    clock.now += 5
    history.on_end(job.task_id, None)
    assert (record.phase, record.ended) == ("finished", 1e9 + 105)
    assert history.newest_first == [record]


def test_an_adopted_job_whose_executor_runs_is_running(history: JobHistory) -> None:
    history.add(jobs.job(), started=True)
    assert history.newest_first[0].phase == "running"


def test_the_loss_is_drawn_over_the_seconds_since_the_job_is_known(history: JobHistory, clock: SetClock) -> None:
    job = jobs.job()
    history.add(job)
    for value in (3.0, 2.0, math.nan, 1.5):
        clock.now += 10
        history.on_report(job.task_id, BATCH)
        history.on_report(job.task_id, loss(value, round_=7))
    (record,) = history.newest_first
    assert record.loss.points() == ([10, 20, 40], [3.0, 2.0, 1.5])
    assert (record.progress.round, record.progress.samples, record.progress.metrics["loss"]) == (7, 32, 1.5)
    assert history.samples_per_second(record) == pytest.approx(32 / 40)


def test_a_job_that_states_its_batches_has_an_estimated_end_while_it_runs(history: JobHistory, clock: SetClock) -> None:
    schedule = {"type": "linear-with-warmup", "warmup_steps": 1, "training_steps": 100}
    job = jobs.job(jobs.train_spec(scheduler=schedule))
    history.add(job)
    (record,) = history.newest_first
    assert history.estimated_end(record) is None
    history.on_report(job.task_id, BATCH)
    for _ in range(10):
        clock.now += 5
        history.on_report(job.task_id, BATCH)
    end = history.estimated_end(record)
    assert (record.progress.batches, record.progress.total_batches) == (11, 100)
    assert end is not None
    assert end - (1e9 + clock.now) == pytest.approx(89 * 5, abs=1)
    history.on_end(job.task_id, None)
    assert history.estimated_end(record) is None


def test_reports_and_the_end_of_an_unknown_job_change_nothing(history: JobHistory) -> None:
    history.on_started(uuid4())
    history.on_report(uuid4(), BATCH)
    history.on_end(uuid4(), "it is gone")
    assert history.newest_first == []


def test_live_jobs_come_first_and_of_those_that_ended_the_last_ones_are_kept(history: JobHistory) -> None:
    ended = [jobs.job() for _ in range(MAX_ENDED + 5)]
    live = jobs.job()
    for job in (ended[0], live, *ended[1:]):
        history.add(job)
    for job in ended:
        history.on_end(job.task_id, "failed")
    kept = [record.task_id for record in history.newest_first]
    assert kept == [live.task_id, *(job.task_id for job in reversed(ended[5:]))]


def test_text_of_a_job_is_escaped_and_cut(history: JobHistory) -> None:
    spec = jobs.train_spec().model_dump(mode="json")
    spec["executor"]["descriptor"]["name"] = "\u202eevil\x1b[2J" + 10_000 * "x"
    job = Job(**{**vars(jobs.job()), "spec": JobSpec.model_validate(spec)})
    history.add(job)
    history.on_end(job.task_id, "\x1b]0;title\x07" + 10_000 * "y")
    (record,) = history.newest_first
    assert record.executor.startswith(r"train/\u202eevil\x1b[2J")
    assert record.reason.startswith(r"\x1b]0;title\x07")
    assert len(record.executor) <= 128
    assert len(record.reason) == MAX_REASON_CHARS


@given(st.lists(st.floats(-1e6, 1e6), max_size=1000))
def test_a_curve_keeps_few_points_in_order_and_the_latest_value_shows_in_the_last(values: list[float]) -> None:
    curve = Curve()
    for x, y in enumerate(values):
        curve.add(x, y)
    xs, ys = curve.points()
    assert len(xs) == len(ys) <= MAX_POINTS
    assert xs == sorted(xs)
    assert bool(xs) == bool(values)
    if len(values) < MAX_POINTS:
        assert ys == [float(f"{value:.5g}") for value in values]
    if values:
        size = -(-len(values) // max(1, MAX_POINTS // 2))
        assert xs[-1] >= len(values) - 1 - 2 * size
        assert min(values) - 1e-3 * abs(min(values)) <= min(ys)
        assert max(ys) <= max(values) + 1e-3 * abs(max(values))


def test_values_that_are_not_finite_leave_no_point() -> None:
    curve = Curve()
    for value in (math.nan, math.inf, -math.inf):
        curve.add(0, value)
    assert curve.points() == ([], [])


def test_a_rate_is_that_of_the_last_minute() -> None:
    rate = Rate(0)
    for now in range(1, 600):
        rate.add(now, 10 * now)
    assert rate.per_s(600, 6000) == pytest.approx(10)
    for now in range(600, 720):
        rate.add(now, 6000)
    assert rate.per_s(720, 6000) == 0


def test_there_is_no_rate_before_anything_was_counted() -> None:
    assert Rate(0).per_s(100, 0) is None
    assert Rate(0).per_s(0.5, 8) is None
