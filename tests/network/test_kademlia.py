"""Records and addresses that nodes keep for each other."""

import os

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_messages.types import peer_id_from_ed25519, peer_id_to_bytes
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError, PeerUnreachable, RemoteRefused
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.services import kademlia, kademlia_messages
from hypha_network.services.kademlia_lookup import peer_key
from hypha_network.services.kademlia_messages import Kind, Message, Record, StoredRecord, decode, encode
from hypha_network.wire.addresses import Address, parse
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, node, until

A = "12D3KooWBkAZ52FV28vNpUsNcSLLfdTZdhph8Vhb2w5hCENAinpB"
B = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"


@pytest.mark.anyio
async def test_a_record_is_found_with_its_publisher() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a, member(pki, "b", g) as b:
        await a.put_record("digits", b'{"num_slices":3}')
        expected = Record(b'{"num_slices":3}', a.peer_id)
        assert [await network.get_record("digits") for network in (a, b, g)] == [expected] * 3
        assert await b.get_record("letters") is None


@pytest.mark.anyio
async def test_a_record_may_be_replaced_by_its_publisher_only() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a, member(pki, "b", g) as b:
        await a.put_record("digits", b"old")
        await a.put_record("digits", b"new")
        with pytest.raises(NetworkError, match="no peer stored"):
            await b.put_record("digits", b"stolen")
        assert await g.get_record("digits") == Record(b"new", a.peer_id)


@pytest.mark.anyio
async def test_a_record_that_names_another_publisher_is_refused() -> None:
    pki = Pki()
    async with gateway(pki) as g, node(pki, "a") as a:
        await a.dial(direct_address(g))
        stream = await a.open_stream(g.peer_id, kademlia.PROTOCOL)
        forged = Message(Kind.PUT_VALUE, b"digits", StoredRecord(b"digits", Record(b"forged", B)))
        await stream.send_all(prefixed(encode(forged)))
        with trio.fail_after(DEADLINE_S), pytest.raises(NetworkError):
            await stream.read_exactly(1)
        assert await g.get_record("digits") is None


@pytest.mark.anyio
async def test_publishing_a_record_without_peers_is_an_error() -> None:
    async with node(Pki(), "a") as a:
        with pytest.raises(NetworkError, match="no peer stored"):
            await a.put_record("digits", b"x")
        assert await a.get_record("letters") is None


@pytest.mark.anyio
async def test_a_record_that_is_too_large_is_an_error() -> None:
    async with node(Pki(), "a") as a:
        with pytest.raises(NetworkError, match="too large"):
            await a.put_record("digits", bytes(kademlia.MAX_RECORD_BYTES))


@pytest.mark.anyio
async def test_a_full_store_refuses_new_records_and_keeps_those_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia, "MAX_RECORDS", 3)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a:
        for number in range(3):
            await a.put_record(f"dataset {number}", b"x")
        with pytest.raises(NetworkError, match="no peer stored"):
            await a.put_record("dataset 3", b"x")
        await a.put_record("dataset 0", b"y")
        assert await g.get_record("dataset 0") == Record(b"y", a.peer_id)
        assert await g.get_record("dataset 1") is not None
        assert await g.get_record("dataset 3") is None


@pytest.mark.anyio
async def test_a_peer_stores_a_limited_number_of_records_and_loses_none_of_them() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "greedy", g) as greedy, member(pki, "honest", g) as honest:
        await honest.put_record("honest", b"x")
        for number in range(kademlia.MAX_RECORDS_PER_PEER):
            await greedy.put_record(f"dataset {number}", b"x")
        with pytest.raises(NetworkError, match="no peer stored"):
            await greedy.put_record("one more", b"x")
        assert await g.get_record("dataset 0") is not None
        await honest.put_record("honest as well", b"x")


@pytest.mark.anyio
async def test_expired_records_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia, "MAX_RECORDS", 1)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a:
        g._kademlia._records[b"old"] = Record(b"x", B), 0.0
        await a.put_record("new", b"x")
        assert await g.get_record("new") == Record(b"x", a.peer_id)


@pytest.mark.anyio
async def test_a_limited_number_of_peers_is_known_and_the_one_heard_from_last_stays() -> None:
    known = kademlia.Kademlia(Host(A, None, None), lambda _: True)  # type: ignore[arg-type]
    address = parse("/ip4/203.0.113.1/tcp/4001")
    known.learn(B, [address], frozenset())
    for _ in range(kademlia.MAX_KNOWN_PEERS + 100):
        known.learn(peer_id_from_ed25519(os.urandom(32)), [address], frozenset())
        known.learn(B, [address], frozenset())
    assert len(known._table) == kademlia.MAX_KNOWN_PEERS
    assert known.addresses_of(B) == (address,)


@pytest.mark.anyio
async def test_a_connected_peer_stays_known_however_many_others_identify_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kademlia, "MAX_KNOWN_PEERS", 3)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a:
        await until(g, lambda: a.peer_id in g._kademlia._table)
        for network, connected in ((a, g.peer_id), (g, a.peer_id)):
            for _ in range(10):
                network._kademlia.learn(peer_id_from_ed25519(os.urandom(32)), [], frozenset())
            assert connected in network._kademlia._table
            assert len(network._kademlia._table) == 3


@pytest.mark.anyio
async def test_members_of_a_gateway_learn_each_others_addresses() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a, member(pki, "b", g) as b:
        await until(b, lambda: a.peer_id in b.connected_peers())
        await until(a, lambda: b.peer_id in a.connected_peers())


@pytest.mark.anyio
async def test_excluded_addresses_that_a_peer_announces_are_ignored() -> None:
    pki = Pki()
    async with gateway(pki, exclude_cidr=("127.0.0.0/8",)) as g, member(pki, "a", g) as a:
        await until(g, lambda: a.peer_id in g._kademlia._table)
        assert g._kademlia.addresses_of(a.peer_id) == ()
        assert a._kademlia.addresses_of(g.peer_id) != ()


@pytest.mark.anyio
async def test_excluded_addresses_in_lookup_answers_are_not_dialled() -> None:
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "a", g) as a,
        node(pki, "b", gateways=(direct_address(g),), exclude_cidr=("127.0.0.0/8",)) as b,
    ):
        await until(b, lambda: bool(b.status().gateways))
        with pytest.raises(PeerUnreachable):
            await b.request(a.peer_id, HEALTH, HealthRequest())
        assert a.peer_id not in b.connected_peers()


async def rest(_: kademlia.Kademlia) -> None:
    """Look nothing up, so that nodes connect only where a test wants it."""
    await trio.sleep_forever()


@pytest.mark.anyio
async def test_a_peer_is_reached_although_the_first_answer_gives_false_addresses_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kademlia.Kademlia, "run", rest)
    pki = Pki()

    async def healthy(_: str, __: HealthRequest) -> HealthResponse:
        return HealthResponse(healthy=True)

    async with gateway(pki, "liar") as liar, gateway(pki, "honest") as honest, node(pki, "a") as a:
        a.handle(HEALTH, healthy)
        await a.dial(direct_address(honest))
        await until(honest, lambda: bool(honest._kademlia.addresses_of(a.peer_id)))
        liar._kademlia.learn(a.peer_id, [parse("/ip4/127.0.0.1/tcp/1")], frozenset())
        lied = trio.Event()
        liar._host._handlers[kademlia.PROTOCOL] = then(liar._host._handlers[kademlia.PROTOCOL], lied)
        honest._host._handlers[kademlia.PROTOCOL] = after(lied, honest._host._handlers[kademlia.PROTOCOL])
        async with node(pki, "b", gateways=(direct_address(liar), direct_address(honest))) as b:
            await until(b, lambda: len(b._kademlia._table) == 2)
            response = await b.request(a.peer_id, HEALTH, HealthRequest())
            assert response.healthy


def then(handler: StreamHandler, event: trio.Event) -> StreamHandler:
    async def serve(connection: Connection, stream: Stream) -> None:
        try:
            await handler(connection, stream)
        finally:
            event.set()

    return serve


def after(event: trio.Event, handler: StreamHandler) -> StreamHandler:
    async def serve(connection: Connection, stream: Stream) -> None:
        await event.wait()
        await handler(connection, stream)

    return serve


@pytest.mark.anyio
async def test_the_addresses_that_several_gateways_name_are_merged() -> None:
    pki = Pki()
    one, other = parse("/ip4/203.0.113.1/tcp/4001"), parse("/ip4/203.0.113.2/tcp/4001")
    async with gateway(pki, "first") as first, gateway(pki, "second") as second, member(pki, "b", first, second) as b:
        first._kademlia.learn(A, [one], frozenset())
        second._kademlia.learn(A, [other], frozenset())
        found = await b._kademlia.ask([first.peer_id, second.peer_id], peer_id_to_bytes(A), DEADLINE_S)
        assert set(found[A]) == {one, other}


@pytest.mark.anyio
@pytest.mark.parametrize("garbage", [prefixed(b"\xff" * 20), b"\xff\xff\xff\xff\x01", prefixed(b"\x08\x63")])
async def test_garbage_is_refused(garbage: bytes) -> None:
    pki = Pki()
    async with gateway(pki) as g, node(pki, "a") as a:
        await a.dial(direct_address(g))
        stream = await a.open_stream(g.peer_id, kademlia.PROTOCOL)
        await stream.send_all(garbage)
        with trio.fail_after(DEADLINE_S), pytest.raises(NetworkError):
            await stream.read_exactly(1)
        assert a.connected_peers() == [g.peer_id]


def test_a_message_reads_back_as_it_was_written() -> None:
    addresses = (parse("/ip4/203.0.113.1/tcp/4001"), parse(f"/dns4/gateway/tcp/1/p2p/{A}/p2p-circuit/p2p/{B}"))
    message = Message(
        Kind.GET_VALUE, b"digits", StoredRecord(b"digits", Record(b"value", A), 3600), ((A, addresses), (B, ()))
    )
    assert decode(encode(message)) == message


def test_the_peers_and_addresses_of_a_message_are_bounded() -> None:
    addresses = tuple(parse(f"/ip4/203.0.113.1/tcp/{port}") for port in range(1, 100))
    decoded = decode(encode(Message(Kind.FIND_NODE, b"key", closer=((A, addresses),) * 100)))
    assert len(decoded.closer) == kademlia_messages.MAX_PEERS
    assert len(decoded.closer[0][1]) == kademlia_messages.MAX_ADDRESSES_PER_PEER


@given(st.binary(max_size=300))
def test_any_bytes_decode_to_a_message_or_are_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except RemoteRefused:
        return
    assert isinstance(message.kind, Kind)


def test_lookups_and_answers_compute_the_place_and_the_bytes_of_a_known_peer_once() -> None:
    checked: list[Address] = []

    def usable(address: Address) -> bool:
        checked.append(address)
        return True

    known = kademlia.Kademlia(Host(A, None, None), usable)  # type: ignore[arg-type]
    for _ in range(kademlia.MAX_KNOWN_PEERS):
        known.learn(peer_id_from_ed25519(os.urandom(32)), [parse("/ip4/203.0.113.1/tcp/4001")], frozenset())
    question = Message(Kind.FIND_NODE, peer_id_to_bytes(A))

    def answer() -> bytes:
        known._begin_lookup(os.urandom(32), "")
        answer = known._answer(B, question)
        assert answer is not None
        return encode(answer)

    checked.clear()
    first = answer()
    places, members = peer_key.cache_info().misses, kademlia_messages._encode_closer.cache_info().misses
    assert answer() == first
    assert peer_key.cache_info().misses == places
    assert kademlia_messages._encode_closer.cache_info().misses == members
    assert not checked, "addresses are checked when they arrive"
