from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts.backoff import Backoff


def test_pauses_grow_up_to_the_longest() -> None:
    assert list(islice(Backoff(0.5, 3, jitter=0).pauses(), 5)) == [0.5, 1, 2, 3, 3]
    assert list(islice(Backoff(0.25, 4, factor=4, jitter=0).pauses(), 3)) == [0.25, 1, 4]


@given(st.floats(0, 1), st.integers(1, 5000))
def test_jitter_only_shortens_a_pause(jitter: float, number: int) -> None:
    *_, last = islice(Backoff(0.5, 30, jitter=jitter).pauses(), number)
    assert min(30, 0.5 * 2.0 ** min(number - 1, 16)) * (1 - jitter) <= last <= 30


def test_no_pause_outlasts_the_deadline() -> None:
    assert list(Backoff(1, 10, jitter=0).pauses(deadline_s=1)) == []
    assert list(islice(Backoff(1, 10, jitter=0).pauses(deadline_s=60), 3)) == [1, 2, 4]
