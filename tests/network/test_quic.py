"""Two nodes over QUIC: requests, bulk data both ways, half-close, resets, many streams, and the end of connections."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.errors import ConnectionLost, DialError, HandshakeError, StreamReset
from hypha_network.examination import examine
from hypha_network.network import Network
from hypha_network.wire import quic_connection
from hypha_network.wire.addresses import parse
from hypha_network.wire.quic_connection import CONNECTION_WINDOW_BYTES, MAX_UNREAD_BYTES, QuicConnection
from hypha_network.wire.streams import Stream
from hypha_network.wire.upgrade import UPGRADE_TIMEOUT_S
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, node, until

pytestmark = pytest.mark.anyio
QUIC = ("/ip4/127.0.0.1/udp/0/quic-v1",)
PROTOCOL = "/test/1"
ENDLESS = memoryview(bytes(1024 * 1024 * 1024))
"""More than any test waits for. The operating system gives zeros no memory before they are read."""
BLOB = random.Random(1).randbytes(24 * 1024 * 1024)
IDLE_S = 2.0
"""An idle timeout that a busy machine does not exceed by itself."""
Handler = Callable[[str, Stream], Awaitable[None]]


@dataclass
class Pair:
    """A node that dialled another one over QUIC."""

    dialling: Network
    listening: Network

    async def open(self) -> Stream:
        return await self.dialling.open_stream(self.listening.peer_id, PROTOCOL)

    @property
    def near(self) -> QuicConnection:
        return connection_of(self.dialling)

    @property
    def far(self) -> QuicConnection:
        return connection_of(self.listening)


def connection_of(network: Network) -> QuicConnection:
    ((connection,),) = network._host.connections.values()
    assert isinstance(connection.muxed, QuicConnection)
    return connection.muxed


@asynccontextmanager
async def pair(handler: Handler | None = None) -> AsyncIterator[Pair]:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as listening, node(pki, "b", listen_addresses=QUIC) as dialling:
        if handler is not None:
            listening.handle_stream(PROTOCOL, handler)
        with trio.fail_after(DEADLINE_S):
            await dialling.dial(direct_address(listening))
            yield Pair(dialling, listening)


async def read_all(stream: Stream, into: bytearray | None = None) -> bytes:
    parts = bytearray() if into is None else into
    while data := await stream.receive_some():
        parts += data
    return bytes(parts)


async def echo(_: str, stream: Stream) -> None:
    """Answer with all that arrived, once the other side has closed its direction."""
    await stream.send_all(await read_all(stream))


async def test_two_nodes_exchange_a_request() -> None:
    async def answer(_: str, __: HealthRequest) -> HealthResponse:
        return HealthResponse(healthy=True)

    async with pair() as nodes:
        nodes.listening.handle(HEALTH, answer)
        response = await nodes.dialling.request(nodes.listening.peer_id, HEALTH, HealthRequest())
        assert response.healthy
        assert nodes.near.peer_id == nodes.listening.peer_id
        assert nodes.far.peer_id == nodes.dialling.peer_id


async def test_a_stream_carries_tens_of_megabytes_there_and_back_unchanged() -> None:
    async with pair(echo) as nodes:
        stream = await nodes.open()
        await stream.send_all(BLOB)
        await stream.send_eof()
        assert await read_all(stream) == BLOB


async def test_bulk_data_flows_both_ways_on_several_streams_at_once() -> None:
    async def serve(_: str, stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, BLOB)
            assert await read_all(stream) == BLOB

    async def use(nodes: Pair) -> None:
        stream = await nodes.open()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(BLOB)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == BLOB

    async with pair(serve) as nodes, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(use, nodes)


async def test_each_direction_closes_by_itself() -> None:
    async with pair(echo) as nodes:
        stream = await nodes.open()
        await stream.send_all(b"question")
        await stream.send_eof()
        assert await read_all(stream) == b"question"
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")


async def test_data_that_arrived_before_a_reset_is_read_before_the_reset() -> None:
    release = trio.Event()

    async def serve(_: str, stream: Stream) -> None:
        await stream.send_all(b"all there is")
        await release.wait()
        stream.reset()

    async with pair(serve) as nodes:
        stream = await nodes.open()
        first = await stream.receive_some(3)
        release.set()
        received = bytearray(first)
        with pytest.raises(StreamReset, match="reset by the peer"):
            await read_all(stream, into=received)
        assert received == b"all there is"


async def test_a_sender_learns_that_its_peer_reads_no_more() -> None:
    async def serve(_: str, stream: Stream) -> None:
        await stream.receive_some(1)

    async with pair(serve) as nodes:
        stream = await nodes.open()
        with pytest.raises(StreamReset, match="does not read on"):
            await stream.send_all(BLOB)


async def test_a_cancelled_send_resets_the_stream() -> None:
    arrived, ended = trio.Event(), trio.Event()

    async def serve(_: str, stream: Stream) -> None:
        await stream.receive_some(1)
        arrived.set()
        with pytest.raises(StreamReset):
            await read_all(stream)
        ended.set()

    async with pair(serve) as nodes:
        stream = await nodes.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, ENDLESS)
            await arrived.wait()
            nursery.cancel_scope.cancel()
        await ended.wait()


async def test_streams_beyond_the_limit_of_the_peer_wait_for_others_to_end() -> None:
    answered = 0

    async def use(nodes: Pair, number: int) -> None:
        nonlocal answered
        stream = await nodes.open()
        text = str(number).encode() * 100
        await stream.send_all(text)
        await stream.send_eof()
        assert await read_all(stream) == text
        answered += 1

    async with pair(echo) as nodes:
        async with trio.open_nursery() as nursery:
            for number in range(250):
                nursery.start_soon(use, nodes, number)
        assert answered == 250
        await trio.testing.wait_all_tasks_blocked()
        assert len(nodes.near.open_streams) <= 2  # identify and ping may be under way
        assert not nodes.near.unread_bytes


async def test_a_peer_that_does_not_read_holds_the_sender_back_with_bounded_memory() -> None:
    sent = 0
    read = trio.Event()

    async def serve(_: str, stream: Stream) -> None:
        await read.wait()
        await read_all(stream)

    async with pair(serve) as nodes:
        stream = await nodes.open()

        async def send() -> None:
            nonlocal sent
            for start in range(0, 3 * len(BLOB), 1024 * 1024):
                await stream.send_all(BLOB[start % len(BLOB) :][: 1024 * 1024])
                sent += 1024 * 1024
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.move_on_after(0.5):
                while True:
                    await trio.sleep(0.01)
                    assert nodes.far.unread_bytes <= MAX_UNREAD_BYTES + CONNECTION_WINDOW_BYTES
            assert sent < 2 * len(BLOB)
            read.set()
        assert sent == 3 * len(BLOB)


async def test_a_stream_that_nobody_reads_ends_before_others_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_connection, "STALL_S", 0.1)
    monkeypatch.setattr(quic_connection, "MAX_UNREAD_BYTES", 1024 * 1024)

    async def serve(_: str, stream: Stream) -> None:
        if bytes(await stream.receive_some(1)) == b"x":
            await stream.send_all(b"y")
        else:
            await trio.sleep_forever()

    async with pair(serve) as nodes:
        stalled = await nodes.open()
        with pytest.raises(StreamReset):
            await stalled.send_all(b"a" + BLOB)
        stream = await nodes.open()
        await stream.send_all(b"x")
        assert bytes(await stream.receive_some()) == b"y"


async def test_a_connection_that_closes_sends_what_is_queued_and_its_peer_notices_at_once() -> None:
    async with pair(echo) as nodes:
        near, far = nodes.near, nodes.far
        stream = await nodes.open()
        before = far.received_bytes
        await stream.send_all(BLOB[: 1024 * 1024])
        with trio.fail_after(quic_connection.CLOSE_TIMEOUT_S):
            await near.close()
            await nodes.listening.wait_until(lambda: not nodes.listening.connected_peers())
        assert far.received_bytes >= before + 1024 * 1024
        assert far.failure == "the peer closed the connection"


async def test_the_streams_of_a_closed_connection_raise_connection_lost() -> None:
    async with pair(echo) as nodes:
        stream = await nodes.open()
        await nodes.far.close()
        with pytest.raises(ConnectionLost):
            await read_all(stream)
        await until(nodes.dialling, lambda: not nodes.dialling.connected_peers())


async def test_a_silent_peer_is_noticed_by_the_idle_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quic_connection._SETTINGS, "idle_timeout", IDLE_S)
    monkeypatch.setattr(quic_connection, "PING_INTERVAL_S", 60.0)
    async with pair() as nodes:
        nodes.far._udp.detach()
        await until(nodes.dialling, lambda: not nodes.dialling.connected_peers())


async def test_an_idle_connection_stays_alive_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quic_connection._SETTINGS, "idle_timeout", IDLE_S)
    monkeypatch.setattr(quic_connection, "PING_INTERVAL_S", IDLE_S / 10)
    async with pair() as nodes:
        await trio.sleep(IDLE_S * 1.5)
        assert not nodes.near.failure
        assert nodes.near.latest_rtt_s


async def test_nodes_that_have_only_quic_join_find_each_other_and_relay() -> None:
    pki = Pki()
    async with (
        gateway(pki, listen_addresses=QUIC) as entry,
        member(pki, "a", entry, listen_addresses=QUIC) as a,
        member(pki, "b", entry, listen_addresses=(), relay_circuit=True) as b,
    ):
        a.handle_stream(PROTOCOL, echo)
        b.handle_stream(PROTOCOL, echo)
        assert all("/udp/" in address and "/quic-v1" in address for address in (*a.addresses(), *b.addresses()))
        for one, other in ((b, a), (a, b)):
            with trio.fail_after(DEADLINE_S):
                stream = await one.open_stream(other.peer_id, PROTOCOL)
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await read_all(stream) == b"hello"


async def test_a_gateway_over_quic_tells_the_address_of_the_quic_listener_alone() -> None:
    pki = Pki()
    both = ("/ip4/127.0.0.1/tcp/0", *QUIC)
    async with gateway(pki, listen_addresses=QUIC) as entry, member(pki, "a", entry, listen_addresses=both) as a:
        (connection,) = a._host.connections[entry.peer_id]
        await until(a, lambda: connection.observed is not None)
        assert a._observed.addresses() == [address for address in a._host.bound if address.transport == "quic-v1"]
        assert a._observed.predictable()


async def test_of_two_nodes_that_punch_a_hole_over_quic_the_initiator_connects() -> None:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as a, node(pki, "b", listen_addresses=QUIC) as b:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(b._host.punch, parse(direct_address(a)), is_initiator=False))
                connection = await a._host.punch(parse(direct_address(b)), is_initiator=True)
                await until(b, lambda: b._host.has_direct(a.peer_id))
                nursery.cancel_scope.cancel()
        assert connection.local_port == a._host.bound[0].port


async def test_a_node_that_does_not_listen_over_quic_punches_no_hole_there() -> None:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as a, node(pki, "b") as b:
        with pytest.raises(DialError, match="listens on no address"):
            await b._host.punch(parse(direct_address(a)), is_initiator=False)


async def test_a_node_behind_a_relay_over_quic_is_dialled_directly_for_bulk_data() -> None:
    pki = Pki()
    async with (
        gateway(pki, listen_addresses=QUIC) as entry,
        member(pki, "a", entry, listen_addresses=QUIC, relay_circuit=True) as a,
        member(pki, "b", entry, listen_addresses=QUIC) as b,
    ):
        through = parse(direct_address(entry)).behind(entry.peer_id, a.peer_id)
        assert (await b._host.dial(through)).limited
        a.handle_stream(PROTOCOL, echo)
        with trio.fail_after(DEADLINE_S):
            stream = await b.open_stream(a.peer_id, PROTOCOL)
            await stream.send_eof()
            assert not await read_all(stream)
        assert b._host.has_direct(a.peer_id)


async def test_a_node_listens_on_tcp_and_quic_at_the_same_port_number() -> None:
    pki = Pki()
    async with node(pki, "a") as a:
        port = a.addresses()[0].split("/")[4]
        both = (f"/ip4/127.0.0.2/tcp/{port}", f"/ip4/127.0.0.2/udp/{port}/quic-v1")
        async with node(pki, "b", listen_addresses=both) as b:
            with trio.fail_after(DEADLINE_S):
                assert [await a.dial(address) for address in b.addresses()] == [b.peer_id] * 2


async def test_the_address_of_a_name_that_does_not_answer_delays_the_other_only_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as listening, node(pki, "b") as dialling:
        port = listening.addresses()[0].split("/")[4]

        async def resolve(*_: object) -> tuple[list[str], list[str]]:
            return ["127.0.0.9", "127.0.0.1"], []

        monkeypatch.setattr("hypha_network.wire.quic.resolve", resolve)
        with trio.fail_after(UPGRADE_TIMEOUT_S / 2):
            assert await dialling.dial(f"/dns4/two.example/udp/{port}/quic-v1") == listening.peer_id


async def test_a_peer_that_attacked_is_refused_and_notices_at_once() -> None:
    async with pair() as nodes:
        nodes.listening._host.refuse(nodes.dialling.peer_id)
        await until(nodes.dialling, lambda: not nodes.dialling.connected_peers())
        await nodes.dialling.dial(direct_address(nodes.listening))
        await until(nodes.dialling, lambda: not nodes.dialling.connected_peers())


async def test_dialling_another_peer_than_the_one_that_answers_fails() -> None:
    pki = Pki()
    other = pki.identity("other").peer_id
    async with node(pki, "a", listen_addresses=QUIC) as listening, node(pki, "b") as dialling:
        with trio.fail_after(DEADLINE_S):
            with pytest.raises(HandshakeError, match=f"dialled {other}, but {listening.peer_id} answered"):
                await dialling.dial(direct_address(listening).replace(listening.peer_id, other))
            assert (await examine(pki.identity("c"), direct_address(listening))).peer_id == listening.peer_id
