"""A peer has several connections, some of which it has lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network import connection as connection_module
from hypha_network import host as host_module
from hypha_network.connection import Connection
from hypha_network.network import Network
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, node, until

pytestmark = pytest.mark.anyio

TOPIC = "topic"


async def healthy(_: str, __: HealthRequest) -> HealthResponse:
    return HealthResponse(healthy=True)


@asynccontextmanager
async def twice_connected() -> AsyncIterator[tuple[Network, Network, Connection, Connection]]:
    """Two nodes, and the connections at the first one: the older one, and the one that the peer made after it."""
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "peer") as peer:
        peer.handle(HEALTH, healthy)
        await a.dial(direct_address(peer))
        await until(peer, lambda: bool(peer.connected_peers()))
        older = a._host.connections[peer.peer_id][0]
        await peer.dial(direct_address(a))
        await until(a, lambda: len(a._host.connections[peer.peer_id]) == 2)
        newer = a._host.connections[peer.peer_id][1]
        yield a, peer, older, newer


async def swallow(_: bytes) -> None:
    """Send nothing, as on a connection whose other end is gone."""


def lose(network: Network, peer: Network, connection: Connection) -> None:
    """Let nothing arrive any more on a connection, which stays open."""
    for other_end in peer._host.connections[network.peer_id]:
        if other_end.inbound != connection.inbound:
            other_end.muxed.secured.write = swallow  # type: ignore[method-assign]


async def test_a_request_takes_the_connection_that_a_crashed_peer_has_made_anew() -> None:
    async with twice_connected() as (a, peer, older, _):
        lose(a, peer, older)
        with trio.fail_after(DEADLINE_S):
            assert (await a.request(peer.peer_id, HEALTH, HealthRequest())).healthy


async def test_a_request_tries_the_other_connections_of_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "TRY_S", 0.05)
    async with twice_connected() as (a, peer, _, newer):
        lose(a, peer, newer)
        newer.muxed.last_received_s = trio.current_time() + DEADLINE_S
        with trio.fail_after(DEADLINE_S):
            assert (await a.request(peer.peer_id, HEALTH, HealthRequest())).healthy


async def test_a_lost_connection_is_closed_after_the_peer_has_made_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_module, "PROBE_TIMEOUT_S", 0.3)
    async with twice_connected() as (a, peer, older, newer):
        lose(a, peer, older)
        await peer.dial(direct_address(a))
        await until(a, lambda: older not in a._host.connections[peer.peer_id])
        assert (await a.request(peer.peer_id, HEALTH, HealthRequest())).healthy
        assert newer in a._host.connections[peer.peer_id]


async def test_gossip_takes_the_connection_heard_from_last() -> None:
    async with twice_connected() as (a, peer, older, newer):
        received = peer.subscribe(TOPIC, bytes)
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        outbox = a._pubsub._peers[peer.peer_id].outbox
        with trio.fail_after(DEADLINE_S):
            while len(outbox._queues) < 2:  # noqa: ASYNC110 - nothing announces it
                await trio.sleep(0.01)
            for lost, heard in ((older, newer), (newer, older)):
                heard.muxed.last_received_s = lost.muxed.last_received_s + 1
                await a.publish(TOPIC, b"hello")
                assert outbox._queues[heard].filled.is_set()
                assert not outbox._queues[lost].filled.is_set()
                assert (await received.receive()).message == b"hello"
