"""Durations for people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.durations import parse_duration, short_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0s"),
        (0.4, "0s"),
        (45, "45s"),
        (60, "1m0s"),
        (188, "3m8s"),
        (7500, "2h5m"),
        (3600, "1h0m"),
        (273_600, "3d4h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800)])
def test_a_written_duration_is_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "5 m", "-1h", "1w", "1h30", "٣h", "9" * 30 + "s"])
def test_another_text_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration. Write 90s, 10m"):
        parse_duration(text)


@given(st.integers(0, 10**9))
def test_a_shown_duration_is_read_as_at_most_a_second_unit_less(seconds: int) -> None:
    assert 0 <= seconds - parse_duration(short_duration(seconds)) < 3600
