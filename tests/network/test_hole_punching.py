"""Nodes agree on when to dial each other, and no peer makes a node dial where or as often as it likes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from hypha_network import host as host_module
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.pauses import Pauses
from hypha_network.services import hole_punching
from hypha_network.services.hole_punching import (
    CONNECT,
    DCUTR,
    MAX_ADDRESSES,
    MAX_ATTEMPTS,
    SYNC,
    HolePuncher,
    punchable,
)
from hypha_network.services.kademlia import Kademlia
from hypha_network.wire.addresses import Address, parse, parse_cidrs
from hypha_network.wire.multistream import prefixed, read_prefixed
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, node, until

pytestmark = pytest.mark.anyio

RELAY = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"
PUBLIC = parse("/ip4/203.0.113.1/tcp/4001")


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/10.0.0.1/tcp/4001",
        "/ip6/::ffff:10.0.0.1/tcp/4001",
        "/dns4/example.org/tcp/4001",
        f"/ip4/203.0.113.1/tcp/4001/p2p/{RELAY}/p2p-circuit",
    ],
)
def test_no_private_address_name_or_relay_is_dialled_for_a_hole(text: str) -> None:
    assert punchable([parse(text), PUBLIC], parse_cidrs(["10.0.0.0/8"])) == [PUBLIC]


def test_few_addresses_are_dialled_for_a_hole() -> None:
    many = [parse(f"/ip4/203.0.113.{number}/tcp/4001") for number in range(100)]
    assert punchable(many, ()) == many[:MAX_ADDRESSES]


class Dials:
    """Records the addresses that a node would dial, and connects nowhere."""

    def __init__(self, network: Network) -> None:
        self.addresses: list[Address] = []
        network._host.punch = self._punch  # type: ignore[assignment]

    async def _punch(self, address: Address, *, is_initiator: bool) -> Connection:
        assert is_initiator
        self.addresses.append(address.endpoint)
        await trio.sleep_forever()
        raise AssertionError


async def idle(*_: object) -> None:
    """Neither reverse nor punch, nor look anybody up."""


@asynccontextmanager
async def relayed(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[..., Awaitable[None]] = idle
) -> AsyncIterator[tuple[Network, Network, Connection]]:
    """A node that has connected to a peer through a gateway, the peer, and its connection.

    With `begin`, the peer does what it should do about a hole in place of the right thing.
    """
    monkeypatch.setattr(hole_punching, "ATTEMPT_S", 0.05)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "peer", g, relay_circuit=True) as peer:
        monkeypatch.setattr(HolePuncher, "_begin", begin)
        monkeypatch.setattr(Kademlia, "run", idle)  # else they find each other
        async with node(pki, "node", gateways=(direct_address(g),)) as a:
            await a.dial(next(address for address in peer.addresses() if "p2p-circuit" in address))
            await until(peer, lambda: a.peer_id in peer.connected_peers())
            (connection,) = peer._host.connections[a.peer_id]
            yield a, peer, connection


async def exchange(connection: Connection, known: Iterable[bytes], then: "HolePunch.Type.ValueType" = SYNC) -> bool:
    """Ask a node to dial addresses; return whether it answers until it dials."""
    with trio.fail_after(DEADLINE_S):
        try:
            stream: Stream = await connection.open([DCUTR])
            await stream.send_all(prefixed(HolePunch(type=CONNECT, ObsAddrs=known).SerializeToString()))
            await read_prefixed(stream, 4096)
            await stream.send_all(prefixed(HolePunch(type=then).SerializeToString()))
            await stream.receive_some()
        except NetworkError:
            return False
    return True


async def test_a_peer_has_few_attempts_at_making_a_node_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed(monkeypatch) as (victim, _, connection):
        dials = Dials(victim)
        many = [parse(f"/ip4/203.0.113.{number}/tcp/4001").to_bytes() for number in range(100)]
        answers = [await exchange(connection, many) for _ in range(10)]
        assert answers == [True] * MAX_ATTEMPTS + [False] * (10 - MAX_ATTEMPTS)
        assert len(dials.addresses) == MAX_ATTEMPTS * MAX_ADDRESSES


async def test_a_peer_has_no_more_attempts_if_it_begins_them_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed(monkeypatch) as (victim, _, connection):
        dials = Dials(victim)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(exchange, connection, [PUBLIC.to_bytes()])
        assert len(dials.addresses) <= MAX_ATTEMPTS


async def test_a_limited_number_of_peers_make_a_node_dial_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hole_punching, "MAX_AT_ONCE", 0)
    async with relayed(monkeypatch) as (victim, _, connection):
        dials = Dials(victim)
        assert not await exchange(connection, [PUBLIC.to_bytes()])
        assert not dials.addresses


@pytest.mark.parametrize(
    ("known", "then"),
    [
        ([], SYNC),
        ([b"\xff" * 64], SYNC),
        ([parse("/dns4/example.org/tcp/1").to_bytes()], SYNC),
        ([PUBLIC.to_bytes()], CONNECT),
        ([PUBLIC.to_bytes()] * 1000, SYNC),
    ],
    ids=["no address", "malformed address", "only a name", "no SYNC", "a message that is too long"],
)
async def test_a_malformed_exchange_makes_a_node_dial_nothing(
    known: list[bytes], then: "HolePunch.Type.ValueType", monkeypatch: pytest.MonkeyPatch
) -> None:
    async with relayed(monkeypatch) as (victim, _, connection):
        dials = Dials(victim)
        assert not await exchange(connection, known, then)
        assert not dials.addresses


async def test_a_peer_with_a_direct_connection_gets_no_hole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed(monkeypatch) as (victim, hostile, connection):
        dials = Dials(victim)
        await hostile.dial(direct_address(victim))
        await until(victim, lambda: victim._host.has_direct(hostile.peer_id))
        assert not await exchange(connection, [PUBLIC.to_bytes()])
        assert not dials.addresses


async def test_the_pauses_begin_after_the_attempts_that_are_free() -> None:
    failures = Pauses(hole_punching.PAUSES, free=2)
    waits = []
    for _ in range(4):
        failures.add("peer")
        waits.append(failures.wait_s("peer"))
    first, second, third, fourth = waits
    assert max(first, second) <= 0
    assert 0 < third < fourth


async def test_bulk_data_waits_for_an_attempt_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "DIRECT_TIMEOUT_S", 0.0)
    waits = trio.Event()

    async def reverse_once_awaited(self: HolePuncher, connection: Connection) -> None:
        await waits.wait()
        await self._reverse(connection.peer_id)

    async def wait(self: HolePuncher, peer_id: str) -> None:
        waits.set()
        await wait_until_over(self, peer_id)

    async def greet(_: str, stream: Stream) -> None:
        await stream.send_all(b"hello")

    wait_until_over = HolePuncher.wait
    monkeypatch.setattr(HolePuncher, "wait", wait)
    async with relayed(monkeypatch, reverse_once_awaited) as (victim, peer, _):
        peer.handle_stream("/greet", greet)
        with trio.fail_after(DEADLINE_S):
            stream = await victim.open_stream(peer.peer_id, "/greet")
            assert await stream.receive_some() == b"hello"
        assert victim._host.has_direct(peer.peer_id)


async def test_a_peer_that_accepts_connections_where_it_is_observed_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = trio.Event()

    async def attempt(self: HolePuncher, connection: Connection) -> None:
        await begin.wait()
        await self._attempt(connection)

    async with relayed(monkeypatch, attempt) as (victim, peer, _):
        monkeypatch.setattr(hole_punching, "ATTEMPT_S", DEADLINE_S)
        Dials(victim)
        begin.set()
        await until(peer, lambda: peer._host.has_direct(victim.peer_id))


async def test_of_two_nodes_that_both_begin_one_yields(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relayed(monkeypatch) as (victim, peer, connection):
        Dials(victim)
        victim._puncher._beginning.add(peer.peer_id)
        assert await exchange(connection, [PUBLIC.to_bytes()]) == (victim.peer_id < peer.peer_id)
