"""Examine an address without joining the network."""

from dataclasses import dataclass

import trio

from hypha_network.failures import only
from hypha_network.host import Host
from hypha_network.identity import Identity
from hypha_network.services.identify import ping
from hypha_network.wire import addresses
from hypha_network.wire.tls import TlsTransport
from hypha_network.wire.upgrade import Upgrader


@dataclass(frozen=True)
class Answer:
    """The peer that answered at an address, and the round-trip time in seconds."""

    peer_id: str
    round_trip_s: float


async def examine(identity: Identity, address: str) -> Answer:
    """Connect to an address, exchange a ping and disconnect, without a part of the network.

    The peer sees one more connection of this identity, on which this node serves no protocol. So a node that runs with
    the same identity keeps its subscriptions, its reservations and its messages.

    Raises:
        DialError: connecting failed; a HandshakeError if TLS did.
        NetworkError: the peer refused this node or did not answer, or the address is malformed.
    """
    parsed = addresses.parse(address)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            host = Host(identity.peer_id, Upgrader(TlsTransport(identity)), nursery)
            connection = await host.dial(parsed)
            began = trio.current_time()
            await ping(connection)
            answer = Answer(connection.peer_id, trio.current_time() - began)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = only(group)
    if failure is not None:
        raise failure
    return answer
