"""Which peers a lookup asks, and in which order."""

import os

from hypha_messages.types import peer_id_from_ed25519
from hypha_network.services.kademlia_lookup import MAX_ADDRESSES_PER_PEER, MAX_ASKED, K, Lookup, peer_key
from hypha_network.wire.addresses import parse

PEERS = sorted((peer_id_from_ed25519(os.urandom(32)) for _ in range(100)), key=peer_key)
"""The closest to key 0 first."""
FALSE, TRUE = parse("/ip4/203.0.113.1/tcp/4001"), parse("/ip4/203.0.113.2/tcp/4001")


def asked_by(lookup: Lookup) -> list[str]:
    """Ask all peers until none is left; every one answers."""
    asked = []
    while peer_id := lookup.next():
        asked.append(peer_id)
        lookup.on_answer(peer_id)
    return asked


def test_the_closest_peers_are_asked_the_closest_first() -> None:
    lookup = Lookup(0)
    for peer_id in reversed(PEERS):
        lookup.add(peer_id, ())
    assert asked_by(lookup) == lookup.answered == PEERS[:K]


def test_the_first_peers_are_asked_however_far_they_are_and_others_are_left_out() -> None:
    lookup = Lookup(0, leave_out={PEERS[0]}, first=[PEERS[0], PEERS[99]])
    for peer_id in PEERS:
        lookup.add(peer_id, ())
    assert asked_by(lookup) == [PEERS[99], *PEERS[1 : K + 1]]


def test_peers_that_do_not_answer_make_room_for_others_up_to_a_limit() -> None:
    lookup = Lookup(0)
    for peer_id in PEERS:
        lookup.add(peer_id, ())
    failed = [lookup.next() for _ in range(K)]
    assert failed == PEERS[:K]
    assert lookup.next() is None, "as many are asked as may count"
    for peer_id in PEERS[:K]:
        lookup.on_failure(peer_id, ())
    assert asked_by(lookup) == PEERS[K : 2 * K]
    assert not lookup.running


def test_a_lookup_asks_a_limited_number_of_peers() -> None:
    lookup = Lookup(0)
    for peer_id in PEERS:
        lookup.add(peer_id, ())
    asked = 0
    while peer_id := lookup.next():
        lookup.on_failure(peer_id, ())
        asked += 1
    assert asked == MAX_ASKED


def test_the_addresses_of_all_answers_are_merged_and_bounded() -> None:
    lookup = Lookup(0)
    lookup.add(PEERS[0], [FALSE])
    lookup.add(PEERS[0], [TRUE, FALSE])
    assert lookup.addresses[PEERS[0]] == (FALSE, TRUE)
    lookup.add(PEERS[0], [parse(f"/ip4/203.0.113.1/tcp/{port}") for port in range(1, 100)])
    assert len(lookup.addresses[PEERS[0]]) == MAX_ADDRESSES_PER_PEER


def test_a_peer_that_failed_is_asked_again_once_another_address_of_it_is_known() -> None:
    lookup = Lookup(0, failed={PEERS[1]: {FALSE}})
    for peer_id in PEERS[:2]:
        lookup.add(peer_id, [FALSE])
    assert lookup.next() == PEERS[0]
    lookup.on_failure(PEERS[0], [FALSE])
    assert lookup.next() is None
    for peer_id in PEERS[:2]:
        lookup.add(peer_id, [TRUE])
    assert asked_by(lookup) == PEERS[:2]


def test_an_address_that_becomes_known_while_a_peer_is_asked_is_tried_as_well() -> None:
    lookup = Lookup(0)
    lookup.add(PEERS[0], [FALSE])
    assert lookup.next() == PEERS[0]
    lookup.add(PEERS[0], [TRUE])
    assert lookup.next() is None
    lookup.on_failure(PEERS[0], [FALSE])
    assert lookup.next() == PEERS[0]


def test_a_peer_that_refuses_queries_is_not_asked_again() -> None:
    lookup = Lookup(0)
    lookup.add(PEERS[0], [FALSE])
    assert lookup.next() == PEERS[0]
    lookup.on_failure(PEERS[0], None)
    lookup.add(PEERS[0], [TRUE])
    assert lookup.next() is None
