"""How much of a job's storage the pushes of each peer may take."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_bridge import push_budget
from hypha_bridge.errors import BridgeError
from hypha_bridge.push_budget import PushBudget

FILE = push_budget._FILE_BYTES


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_budget, "_MAX_WAIT_S", -1.0)


def test_a_single_peer_may_use_all() -> None:
    budget = PushBudget(FILE + 1000, 10, peers=1)
    budget.begin("a")
    budget.grow("a", 1000)
    assert budget.exhausted
    with pytest.raises(BridgeError, match="exceed its share"):
        budget.grow("a", 1)


def test_a_peer_leaves_as_much_free_as_it_uses_beyond_its_equal_share() -> None:
    budget = PushBudget(2_000_000, 100, peers=10)
    budget.begin("a")
    budget.grow("a", 990_000)
    with pytest.raises(BridgeError):
        budget.grow("a", 10_000)
    budget.begin("b")
    budget.grow("b", 400_000)


@given(st.lists(st.integers(1, 500_000), max_size=40), st.integers(2, 50))
def test_whatever_one_peer_sends_half_of_the_space_stays_for_the_others(growth: list[int], peers: int) -> None:
    limit = 1_000_000
    budget = PushBudget(limit, 1000, peers)
    for size_bytes in growth:
        with contextlib.suppress(BridgeError):
            budget.grow("a", size_bytes)
    assert budget._bytes["a"] <= limit // 2
    for number in range(1, peers):
        budget.grow(f"peer {number}", limit // 2 // peers)


def test_one_peer_cannot_take_every_place() -> None:
    budget = PushBudget(float("inf"), 64, peers=4)
    for _ in range(32):
        budget.begin("a")
    with pytest.raises(BridgeError, match="wait for the executor already"):
        budget.begin("a")
    for peer in ("b", "c", "d"):
        for _ in range(10):
            budget.begin(peer)


def test_a_delivered_push_counts_until_its_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    budget = PushBudget(100_000, 10, peers=2)
    budget.begin("a")
    budget.grow("a", 45_000)
    budget.deliver("a", 45_000, path)
    budget.begin("a")
    with pytest.raises(BridgeError):
        budget.grow("a", 45_000)
    path.unlink()
    budget.grow("a", 45_000)


def test_a_push_that_broke_off_no_longer_counts() -> None:
    budget = PushBudget(100_000, 10, peers=2)
    for _ in range(100):
        budget.begin("a")
        budget.grow("a", 45_000)
        budget.end("a", 45_000)
    assert (budget._bytes.total(), budget._pushes.total()) == (0, 0)
