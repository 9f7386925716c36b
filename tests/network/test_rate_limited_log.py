import logging

import pytest

from hypha_network import rate_limited_log
from hypha_network.rate_limited_log import MAX_LINE_CHARS, MAX_LINES, RateLimitedLogger


def test_one_line_per_subject_and_interval_is_logged_and_the_next_counts_the_suppressed_ones(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(rate_limited_log.time, "monotonic", lambda: now)
    limited = RateLimitedLogger(logging.getLogger("test"), interval_s=10)
    for _ in range(5):
        limited.warning("peer A", "sends %s", "garbage")
    limited.warning("peer B", "sends %s", "garbage")
    now = 111.0
    limited.warning("peer A", "sends %s", "more")
    assert [record.getMessage() for record in caplog.records] == [
        "peer A: sends garbage",
        "peer B: sends garbage",
        "peer A: sends more (4 similar lines were suppressed)",
    ]


def test_the_number_of_recorded_subjects_is_bounded() -> None:
    limited = RateLimitedLogger(logging.getLogger("test"))
    for number in range(5000):
        limited.warning(str(number), "x")
    assert len(limited._subjects) <= 1024


def test_many_subjects_together_get_few_lines_and_a_long_line_is_cut(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(rate_limited_log.time, "monotonic", lambda: now)
    limited = RateLimitedLogger(logging.getLogger("test"), interval_s=10)
    for _ in range(60):
        for number in range(100):
            limited.warning(f"peer {number}", "says %s", "x" * 60_000)
        now += 10
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 60 * MAX_LINES
    assert max(map(len, texts)) < MAX_LINE_CHARS + 50


def test_an_error_is_logged_with_the_lines_below_it(caplog: pytest.LogCaptureFixture) -> None:
    limited = RateLimitedLogger(logging.getLogger("test"))
    for _ in range(3):
        limited.error("task 1", "failed: %s", "exit 1", lines=["last words"])
    (record,) = caplog.records
    assert (record.getMessage(), record.__dict__["lines"]) == ("task 1: failed: exit 1", ["last words"])
