import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_executor.errors import ExecutorError
from hypha_executor.progress import Answer, Progress
from hypha_trainer.progress import MAX_ERRORS, Countdown, Metrics, Reporter, summarise

Json = dict[str, Any]


class Scheduler:
    """Answers reports with the result of a function, after the delay of a network."""

    def __init__(self, answer: Callable[[Any], Json]):
        self.answer = answer
        self.reports: list[Any] = []

    def report(self, progress: Any) -> Json:
        self.reports.append(progress)
        return self.answer(progress)


def batches_until_update(reporter: Reporter, duration_s: float = 100.0, limit: int = 50) -> int:
    for batch in range(1, limit + 1):
        reporter.batch_done(8, duration_s)
        if reporter.countdown.over:
            return batch
    return limit


@given(told_at=st.integers(1, 5), counter=st.integers(0, 5))
def test_the_scheduler_says_how_many_more_batches_are_trained(told_at: int, counter: int) -> None:
    def answer(progress: Any) -> Json:
        told = isinstance(progress, dict) and len(scheduler.reports) == told_at
        return {"type": "ScheduleUpdate", "counter": counter} if told else {"type": "Continue"}

    scheduler = Scheduler(answer)
    reporter = Reporter(Progress(scheduler))
    assert batches_until_update(reporter) == told_at + counter
    reporter.finish_round()
    assert scheduler.reports == [{"status": {"batch_size": 8}}] * (told_at + counter) + ["update"]
    assert reporter.countdown.left is None


def test_a_slow_scheduler_does_not_delay_batches_and_adds_one_at_most() -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def answer(_: Any) -> Json:
        asked.set()
        may_answer.wait(20)
        return {"type": "ScheduleUpdate", "counter": 0}

    reporter = Reporter(Progress(Scheduler(answer)))
    reporter.batch_done(8, duration_s=0.0)
    assert asked.wait(20)
    assert not reporter.countdown.over  # the next batch is trained meanwhile
    may_answer.set()
    reporter.batch_done(8, duration_s=0.0)
    assert reporter.countdown.over


def test_a_later_schedule_replaces_the_earlier_one() -> None:
    countdown = Countdown()
    countdown.on_answer(Answer(batches_left=5), batches_since=0)
    countdown.batch_done()
    countdown.on_answer(Answer(batches_left=1), batches_since=1)
    assert countdown.over


def test_many_error_answers_in_a_row_end_the_training() -> None:
    reporter = Reporter(Progress(Scheduler(lambda _: {"type": "Error"})))
    for _ in range(MAX_ERRORS - 1):
        reporter.batch_done(8, duration_s=100.0)
    with pytest.raises(ExecutorError, match="dropped this worker"):
        reporter.batch_done(8, duration_s=100.0)


@pytest.mark.parametrize(("kind", "done"), [("Done", True), ("Continue", False), ("Ok", False)])
def test_the_answer_to_a_merged_update_ends_or_continues_the_training(kind: str, done: bool) -> None:
    scheduler = Scheduler(lambda _: {"type": kind})
    assert Reporter(Progress(scheduler)).update_received() is done
    assert scheduler.reports == ["update-received"]


def test_metrics_of_fast_batches_are_sent_together() -> None:
    now_s, sent = 0.0, threading.Semaphore(0)

    def answer(_: Any) -> Json:
        sent.release()
        return {"type": "Ok"}

    scheduler = Scheduler(answer)
    metrics = Metrics(Progress(scheduler), every_s=1.0, clock=lambda: now_s)
    metrics.batch_done(1, loss=4.0, duration_s=0.5, samples=8)
    assert sent.acquire(timeout=20)
    for loss in (3.0, 1.0):
        metrics.batch_done(1, loss=loss, duration_s=0.25, samples=8)
    metrics.flush(1)
    assert sent.acquire(timeout=20)
    assert [report["metrics"]["round"] for report in scheduler.reports] == [1, 1]
    values = scheduler.reports[1]["metrics"]["metrics"]
    assert values == {"loss": 2.0, "batch_time": 0.25, "samples": 16.0, "samples_per_second": 32.0}


def test_metrics_are_waited_for_until_they_are_sent_or_the_time_is_over() -> None:
    may_answer = threading.Event()

    def answer(_: Any) -> Json:
        may_answer.wait(20)
        answered.append(True)
        return {"type": "Ok"}

    answered: list[bool] = []
    metrics = Metrics(Progress(Scheduler(answer)))
    metrics.wait(20)
    metrics.batch_done(1, loss=4.0, duration_s=0.5, samples=8)
    metrics.wait(0.01)
    assert not answered
    may_answer.set()
    metrics.wait(20)
    assert answered


def test_batches_without_duration_have_no_sample_rate() -> None:
    assert summarise([(1.0, 0.0, 4)])["samples_per_second"] == 0.0


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    assert summarise([(float("nan"), 1.0, 4), (2.0, 1.0, 4), (float("inf"), 1.0, 4)])["loss"] == 2.0
    assert "loss" not in summarise([(float("nan"), 1.0, 4)])
