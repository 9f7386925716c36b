"""What a node keeps about the sources of gossip that it has not verified."""

import random

from hypothesis import given
from hypothesis import strategies as st

from hypha_network.recent_peers import RecentPeers
from hypha_network.services.gossip_sources import HeldMessages


def test_held_messages_are_bounded_and_a_flood_displaces_only_its_own() -> None:
    held = HeldMessages(100_000)
    held.add("gateway", "honest", b"request")
    for number in range(10_000):
        held.add("attacker", f"key {number}", bytes(300))
    assert held.size_bytes <= 100_000
    assert held.take("honest") == [("gateway", b"request")]


def test_a_flood_through_the_same_gateway_displaces_an_honest_message_only_by_chance() -> None:
    survived = 0
    for _ in range(100):
        held = HeldMessages(100_000)
        held.add("gateway", "honest", b"request")
        for number in range(140):
            held.add("gateway", f"key {number}", bytes(300))
        survived += "honest" in held
    assert 70 <= survived <= 99


def test_few_messages_of_a_source_are_held_and_none_that_is_large() -> None:
    held = HeldMessages()
    for number in range(100):
        held.add("gateway", "source", b"%d" % number)
    held.add("gateway", "other", bytes(9000))
    held.add("gateway", "source", b"0")
    assert [message for _, message in held.take("source")] == [b"0", b"1", b"2", b"3"]
    assert not len(held)


def test_a_forger_leaves_the_share_of_another_forwarder_alone() -> None:
    held = HeldMessages()
    for number in range(100):
        held.add("forger", "honest", b"forged %d" % number)
    held.add("gateway", "honest", b"request")
    assert ("gateway", b"request") in held.take("honest")


def test_every_forwarder_is_drawn_from_equally_often() -> None:
    held = HeldMessages()
    for number in range(2000):
        held.add("attacker", f"key {number}", b"request")
    for number in range(50):
        held.add("gateway", f"peer {number}", b"request")
    drawn = [held.draw()[0] for _ in range(100)]
    assert 25 <= drawn.count("gateway") <= 50


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("stuv"), st.binary(max_size=900))))
def test_the_size_is_that_of_the_held_messages(messages: list[tuple[str, str, bytes]]) -> None:
    held = HeldMessages(4000)
    for number, (forwarder, source, message) in enumerate(messages):
        held.add(forwarder, source, message)
        assert held.size_bytes <= 4000
        if number % 3 == 2 and len(held):
            held.draw()
    for source in "stuv":
        held.take(source)
    assert (held.size_bytes, len(held)) == (0, 0)


def test_recent_peers_are_bounded_and_the_oldest_is_dropped() -> None:
    recent = RecentPeers(60, limit=3)
    for peer_id in random.sample("abc", 3):
        recent.add(peer_id)
    recent.add("a")
    recent.add("d")
    assert len(recent) == 3
    assert "a" in recent
    assert "d" in recent
    assert "a" not in RecentPeers(0)
