import pytest

from hypha_network.traffic import MAX_NAMED, OTHERS, PeerCounts


@pytest.fixture
def full() -> PeerCounts[str]:
    """Counts with as many named peers as possible, of which peer 0 has moved least."""
    counts: PeerCounts[str] = PeerCounts()
    for number in range(MAX_NAMED):
        counts.add(f"peer {number}", 100 + number, {"in": 100 + number})
    return counts


def test_the_first_peers_are_named(full: PeerCounts[str]) -> None:
    assert full.of("in")["peer 3"] == 103
    assert OTHERS not in full.of("in")


def test_all_further_peers_together_are_the_others(full: PeerCounts[str]) -> None:
    for number in range(5000):
        full.add(f"small {number}", 1, {"in": 1, "out": 2})
    assert full.of("in")[OTHERS] == 5000
    assert full.of("out") == {OTHERS: 10_000}
    assert len(full.of("in")) == MAX_NAMED + 1


def test_a_peer_that_has_moved_twice_as_much_takes_the_place_of_the_least(full: PeerCounts[str]) -> None:
    full.add("large", 200, {"in": 200})
    assert "large" not in full.named
    full.add("large", 1, {"in": 1})
    assert "large" in full.named
    assert "peer 0" not in full.named
    assert full.of("in")["large"] == 1
    assert full.of("in")[OTHERS] == 200
    assert "peer 0" not in full.of("in")


def test_names_do_not_change_back_and_forth(full: PeerCounts[str]) -> None:
    changes, before = 0, full.named
    for number in range(1000):
        full.add(("peer 0", "rival")[number % 2], 1, {"in": 1})
        changes += full.named != before
        before = full.named
    assert changes <= 1


def test_no_amount_is_counted_twice_or_lost_while_names_stay(full: PeerCounts[str]) -> None:
    before = sum(full.of("in").values())
    for number in range(100):
        full.add(f"peer {number}", 1, {"in": 1})
    assert sum(full.of("in").values()) == before + 100
    assert sum(amount for _, _, amount in full.all()) == before + 100
