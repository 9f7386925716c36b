"""All attacks by name, in the roles of the attackers that make them."""

from collections.abc import Awaitable, Callable
from enum import StrEnum

from hypha_network.identity import Identity
from support.attacks import connections, gossip, market, pushes, streams
from support.attacks.raw_peer import RawPeer, Tally
from support.attacks.target import Target

PeerAttack = Callable[[RawPeer, Target], Awaitable[None]]
"""Attacks on one muxed connection."""
ConnectionAttack = Callable[[Identity, Target, Tally], Awaitable[None]]
"""Makes its own connections."""


class Role(StrEnum):
    """What an attacker is. All but strangers have a certificate of the network."""

    PEER = "peer"
    NAMED = "named"
    """A peer that the honest job names as a sender."""
    BEHIND_GATEWAY = "behind the gateway"
    """A peer that is connected with the gateway, and not with the node."""
    SCHEDULER = "scheduler"
    STRANGER = "stranger"
    """A client without a certificate, or with one of another network."""


ON_A_CONNECTION: dict[Role, list[PeerAttack]] = {
    Role.PEER: [
        gossip.requests_for_nothing,
        gossip.requests_of_fresh_keys,
        gossip.forged_gossip,
        gossip.tiny_forged_gossip,
        gossip.long_sequence_numbers,
        gossip.bombs_in_gossip,
        gossip.malformed_gossip,
        gossip.gossip_control,
        streams.bombs_in_requests,
        streams.garbage_in_requests,
        streams.too_long_requests,
        streams.large_specifications,
        streams.leases_of_others,
        streams.unasked_pushes,
        streams.negotiations,
        streams.streams_opened_and_reset,
        streams.pings_and_window_updates,
        streams.broken_frames,
        streams.stalled_streams,
        streams.byte_by_byte,
        streams.identify_floods,
        streams.kademlia_floods,
        streams.unread_answers,
        streams.announced_circuits,
    ],
    Role.NAMED: [pushes.header_pushes, pushes.slow_pushes, pushes.broken_pushes, pushes.large_pushes],
    Role.BEHIND_GATEWAY: [
        gossip.requests_of_fresh_keys,
        gossip.requests_for_nothing,
        gossip.forged_gossip,
        streams.relay_reservations,
        streams.relay_circuits,
        streams.kademlia_floods,
    ],
}
BY_THEMSELVES: dict[Role, list[ConnectionAttack]] = {
    Role.SCHEDULER: [market.leases_for_nothing, market.lapsed_offers, connections.complete_handshakes],
    Role.STRANGER: [
        connections.silent_connections,
        connections.half_handshakes,
        connections.garbage_connections,
        connections.tls_without_a_certificate,
        connections.complete_handshakes,
        connections.bogus_tokens,
    ],
}
ATTACKS: list[tuple[Role, str]] = [
    (role, attack.__name__)
    for attacks in (ON_A_CONNECTION, BY_THEMSELVES)
    for role, members in attacks.items()
    for attack in members
]
