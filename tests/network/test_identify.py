"""Peers announce their addresses and protocols, and answer pings."""

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr

from hypha_contracts.backoff import Backoff
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.services import identify
from hypha_network.services.identify import IDENTIFY, PING, PUSH
from hypha_network.services.kademlia_messages import Record
from hypha_network.wire.addresses import parse
from hypha_network.wire.multistream import prefixed, read_prefixed
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, node, until

pytestmark = pytest.mark.anyio


async def test_a_node_identifies_itself_as_the_network_expects() -> None:
    pki = Pki()
    async with node(pki, "a", external_addresses=("/dns4/a.example.org/tcp/1",)) as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        stream = await b.open_stream(a.peer_id, IDENTIFY)
        with trio.fail_after(DEADLINE_S):
            said = Identify.FromString(await read_prefixed(stream, 1 << 16))
        assert said.protocol_version == "/hypha-identify/0.0.1"
        assert said.agent_version.startswith("hypha-worker/")
        assert (
            said.public_key[:4]
            == create_new_key_pair(a.identity.seed).public_key.serialize()[:4]
            == bytes.fromhex("08011220")
        )
        assert {str(Multiaddr(address)) for address in said.listen_addrs} == {
            direct_address(a).partition("/p2p/")[0],
            "/dns4/a.example.org/tcp/1",
        }
        assert str(Multiaddr(said.observed_addr)).startswith("/ip4/127.0.0.1/tcp/")
        assert {IDENTIFY, PUSH, PING, "/meshsub/1.1.0", "/libp2p/circuit/relay/0.2.0/stop"} <= set(said.protocols)


async def test_a_new_relay_address_is_pushed_to_peers() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g, listen_addresses=(), relay_circuit=True) as a:
        await until(g, lambda: bool(g._kademlia.addresses_of(a.peer_id)))
        assert [address.relay for address in g._kademlia.addresses_of(a.peer_id)] == [g.peer_id]


@pytest.mark.parametrize("garbage", [prefixed(b"\xff" * 100), b"\xff\xff\xff\xff\x01"])
async def test_a_malformed_push_changes_nothing(garbage: bytes) -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        await until(a, lambda: bool(a._kademlia.addresses_of(b.peer_id)))
        stream = await b.open_stream(a.peer_id, PUSH)
        await stream.send_all(garbage)
        with trio.fail_after(DEADLINE_S), pytest.raises(NetworkError):
            await stream.read_exactly(1)
        assert a._kademlia.addresses_of(b.peer_id)


async def test_every_ping_on_a_stream_is_echoed() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        stream = await b.open_stream(a.peer_id, PING)
        with trio.fail_after(DEADLINE_S):
            for number in range(3):
                await stream.send_all(bytes([number]) * 32)
                assert await stream.read_exactly(32) == bytes([number]) * 32


async def test_a_connection_whose_peer_stops_answering_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "PING_INTERVAL_S", 0.02)
    monkeypatch.setattr(identify, "PING_TIMEOUT_S", 0.05)
    pki = Pki()

    async def mute(_: Connection, __: Stream) -> None:
        await trio.sleep_forever()

    async with node(pki, "mute") as a, node(pki, "b") as b:
        a._host._handlers[PING] = mute
        await b.dial(direct_address(a))
        await until(b, lambda: not b.connected_peers())


async def test_a_connection_whose_peer_answers_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "PING_INTERVAL_S", 0.001)
    pki = Pki()
    pinged = 0
    enough = trio.Event()

    async def count(_: Connection, stream: Stream) -> None:
        nonlocal pinged
        pinged += 1
        if pinged == 5:
            enough.set()
        await stream.send_all(bytes(await stream.read_exactly(32)))

    async with node(pki, "a") as a, node(pki, "b") as b:
        a._host._handlers[PING] = count
        await b.dial(direct_address(a))
        with trio.fail_after(DEADLINE_S):
            await enough.wait()
        assert b.connected_peers() == [a.peer_id]


class Flaky:
    """Answers identify with what a node says, from the third request on."""

    def __init__(self, network: Network) -> None:
        self.requests = 0
        self._answer = network._host._handlers[IDENTIFY]
        network._host._handlers[IDENTIFY] = self

    async def __call__(self, connection: Connection, stream: Stream) -> None:
        self.requests += 1
        if self.requests == 1:
            await trio.sleep_forever()
        if self.requests == 2:
            raise NetworkError("refused")
        await self._answer(connection, stream)


async def test_identify_is_repeated_until_the_peer_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(identify, "RETRIES", Backoff(first_s=0.01, max_s=0.01))
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        flaky = Flaky(a)
        await b.dial(direct_address(a))
        await until(b, lambda: bool(b._kademlia.addresses_of(a.peer_id)))
        assert flaky.requests == 3


async def test_identify_is_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "REFRESHES", Backoff(first_s=0.01, max_s=0.01))
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        await until(b, lambda: bool(b._kademlia.addresses_of(a.peer_id)))
        external = parse("/ip4/203.0.113.1/tcp/4001")
        a._external.append(external)  # and no push announces it
        await until(b, lambda: external in b._kademlia.addresses_of(a.peer_id))


async def test_a_node_joins_through_a_gateway_that_never_identifies_itself() -> None:
    pki = Pki()

    async def mute(_: Connection, __: Stream) -> None:
        await trio.sleep_forever()

    async with gateway(pki) as g, member(pki, "a", g) as a:
        g._host._handlers[IDENTIFY] = mute
        async with member(pki, "b", g) as b:
            assert b.status().bootstrapped
            await b.put_record("digits", b"x")
            assert await a.get_record("digits") == Record(b"x", b.peer_id)
