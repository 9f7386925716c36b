"""What a node sums up of a job's reports: amounts, rates, and the end if the job states how long it is."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages.job import JobSpec
from hypha_messages.progress import Metrics, Progress, Status
from hypha_resources.job import Progress as JobProgress
from hypha_worker.progress import ProgressTally, interval_s, stated_batches
from support import jobs
from support.hostile_text import HOSTILE

WALL = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = Progress(status=Status(batch_size=8))


def round_(number: int, loss: float = 0.5) -> Progress:
    return Progress(metrics=Metrics(round=number, metrics={"loss": loss}))


def sum_up(tally: ProgressTally, now: float) -> JobProgress:
    return tally.sum_up(now, WALL.timestamp() + now)


def train(tally: ProgressTally, count: int, *, every_s: float, begin: float = 0.0) -> None:
    for number in range(count):
        tally.add(BATCH, begin + number * every_s)


@given(st.lists(st.integers(0, 100), max_size=50), st.integers(0, 10))
def test_progress_adds_up(batches: list[int], earlier: int) -> None:
    tally = ProgressTally(0.0, JobProgress(batches=earlier, samples=10 * earlier))
    for size in batches:
        tally.add(Progress(status=Status(batch_size=size)), 1.0)
    progress = sum_up(tally, 2.0)
    assert progress.batches == earlier + len(batches)
    assert progress.samples == 10 * earlier + sum(batches)
    reports_samples = bool(progress.samples)  # a parameter server reports none
    assert progress.samples_per_second == (sum(batches) / 2 if reports_samples else None)
    assert sum_up(tally, 3.0).samples_per_second == (0 if reports_samples else None)


@given(st.integers(1, 10_000))
def test_all_jobs_together_write_progress_ten_times_a_second_at_most(count: int) -> None:
    assert interval_s(count) >= 5
    assert count / interval_s(count) <= 10


def test_only_a_limited_number_of_short_printable_and_finite_metrics_is_kept() -> None:
    tally = ProgressTally(0.0)
    hidden = {f"m{character}": 1.0 for character in HOSTILE if not "\ud800" <= character <= "\udfff"}
    metrics = {"loss": 0.5, "nan": math.nan, "inf": math.inf, "x" * 64: 1.0} | {f"m{i}": 1.0 for i in range(100)}
    tally.add(Progress(metrics=Metrics(round=3, metrics=hidden | metrics)), 1.0)
    tally.add(Progress(stage="update"), 1.0)
    progress = sum_up(tally, 1.0)
    assert progress.round == 3
    assert progress.metrics["loss"] == 0.5
    assert len(progress.metrics) == 32
    assert not {"nan", "inf", "x" * 64, *hidden} & progress.metrics.keys()
    assert len(progress.model_dump_json()) < 4096


class TestRounds:
    def test_one_round_has_no_rate_yet(self) -> None:
        tally = ProgressTally(0.0)
        tally.add(round_(1), 100.0)
        assert sum_up(tally, 200.0).rounds_per_hour is None

    def test_the_rate_is_that_of_the_last_ten_rounds(self) -> None:
        tally = ProgressTally(0.0)
        for number in range(1, 5):
            tally.add(round_(number), number * 3600.0)
        assert sum_up(tally, 5 * 3600.0).rounds_per_hour == 1
        for number in range(5, 20):
            tally.add(round_(number), 4 * 3600.0 + (number - 4) * 60.0)
        assert sum_up(tally, 6 * 3600.0).rounds_per_hour == 60

    def test_a_round_that_is_reported_twice_counts_once(self) -> None:
        tally = ProgressTally(0.0)
        for now, number in ((0.0, 1), (900.0, 2), (1800.0, 2)):
            tally.add(round_(number), now)
        assert sum_up(tally, 1800.0).rounds_per_hour == 4

    def test_a_job_that_counts_anew_is_rated_anew(self) -> None:
        tally = ProgressTally(0.0)
        for now, number in ((0.0, 8), (10.0, 9), (20.0, 1), (380.0, 2)):
            tally.add(round_(number), now)
        assert sum_up(tally, 400.0).rounds_per_hour == 10


class TestEnd:
    def test_a_job_that_states_no_batches_has_no_total_and_no_end(self) -> None:
        tally = ProgressTally(0.0)
        train(tally, 100, every_s=1.0)
        progress = sum_up(tally, 100.0)
        assert (progress.total_batches, progress.estimated_end) == (None, None)

    def test_the_end_follows_from_the_stated_batches_and_the_mean_rate(self) -> None:
        tally = ProgressTally(0.0, total_batches=201)
        train(tally, 101, every_s=1.0)
        progress = sum_up(tally, 100.0)
        assert progress.total_batches == 201
        assert progress.estimated_end == datetime(2026, 1, 1, 0, 3, 20, tzinfo=UTC)

    def test_a_job_that_has_ended_has_no_end_to_come(self) -> None:
        tally = ProgressTally(0.0, total_batches=201)
        train(tally, 101, every_s=1.0)
        tally.end()
        assert sum_up(tally, 100.0).estimated_end is None

    def test_a_pause_delays_the_end(self) -> None:
        tally = ProgressTally(0.0, total_batches=201)
        train(tally, 101, every_s=1.0)
        assert sum_up(tally, 200.0).estimated_end == datetime(2026, 1, 1, 0, 6, 40, tzinfo=UTC)

    def test_too_short_a_time_says_nothing(self) -> None:
        tally = ProgressTally(0.0, total_batches=200)
        train(tally, 20, every_s=1.0)
        assert sum_up(tally, 20.0).estimated_end is None

    def test_the_time_before_the_first_batch_does_not_count(self) -> None:
        tally = ProgressTally(0.0, total_batches=201)
        train(tally, 101, every_s=1.0, begin=1000.0)
        assert sum_up(tally, 1100.0).estimated_end == datetime(2026, 1, 1, 0, 20, tzinfo=UTC)

    def test_a_job_that_goes_on_beyond_what_it_states_has_no_end(self) -> None:
        tally = ProgressTally(0.0, total_batches=50)
        train(tally, 100, every_s=1.0)
        assert sum_up(tally, 100.0).estimated_end is None

    def test_an_end_too_far_away_to_be_a_date_is_left_out(self) -> None:
        tally = ProgressTally(0.0, total_batches=2**31 - 1)
        train(tally, 2, every_s=3600.0)
        assert sum_up(tally, 3600.0).estimated_end is None

    def test_a_later_process_takes_the_rate_from_its_own_reports(self) -> None:
        tally = ProgressTally(0.0, JobProgress(batches=1000, estimated_end=WALL), 1200)
        assert sum_up(tally, 50.0).estimated_end is None
        train(tally, 100, every_s=1.0, begin=50.0)
        assert sum_up(tally, 149.0).estimated_end == datetime(2026, 1, 1, 0, 4, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("scheduler", "stated"),
    [
        (None, None),
        ({"type": "wsd", "warmup_steps": 10, "decay_steps": 90}, None),
        ({"type": "cosine-with-warmup", "warmup_steps": 10, "training_steps": 200}, 200),
        ({"type": "linear-with-warmup", "warmup_steps": 10, "training_steps": 200}, 200),
        ({"type": "linear-with-warmup", "warmup_steps": 10, "training_steps": -1}, None),
    ],
)
def test_a_job_states_its_batches_by_its_schedule_of_the_learning_rate(
    scheduler: dict[str, Any] | None, stated: int | None
) -> None:
    assert stated_batches(jobs.train_spec(**({"scheduler": scheduler} if scheduler else {}))) == stated


@pytest.mark.parametrize("spec", [jobs.aggregate_spec([jobs.SCHEDULER]), jobs.inference_spec([jobs.SCHEDULER])])
def test_other_jobs_state_no_batches(spec: JobSpec) -> None:
    assert stated_batches(spec) is None
