"""Streams between nodes on loopback."""

import pytest
import trio

from hypha_network import network as network_module
from hypha_network.errors import NetworkError, RemoteRefused, StreamReset
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, node

pytestmark = pytest.mark.anyio

PUSH = "/hypha-tensor-stream/push"


async def read_all(stream: Stream) -> bytes:
    data = b""
    while part := await stream.receive_some():
        data += part
    return data


async def test_bytes_pass_in_both_directions_which_end_separately() -> None:
    pki = Pki()

    async def echo(peer_id: str, stream: Stream) -> None:
        data = await read_all(stream)
        await stream.send_all(peer_id.encode() + data)

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle_stream(PUSH, echo)
        await b.dial(direct_address(a))
        stream = await b.open_stream(a.peer_id, PUSH)
        payload = bytes(range(256)) * 10_000
        await stream.send_all(payload)
        await stream.send_eof()
        with trio.fail_after(DEADLINE_S):
            assert await read_all(stream) == b.peer_id.encode() + payload
        await stream.aclose()


async def test_data_that_arrived_before_a_reset_is_returned_first() -> None:
    pki = Pki()
    payload = bytes(200_000)

    async def send_and_reset(_: str, stream: Stream) -> None:
        await stream.send_all(payload)
        stream.reset()

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle_stream(PUSH, send_and_reset)
        await b.dial(direct_address(a))
        stream = await b.open_stream(a.peer_id, PUSH)
        received = b""
        with trio.fail_after(DEADLINE_S):
            while len(received) < len(payload):
                received += await stream.receive_some()
            with pytest.raises(StreamReset):
                await stream.receive_some()
        assert received == payload


@pytest.mark.parametrize("collects", [False, True])
async def test_bytes_that_wait_for_the_rest_of_a_message_count_as_unread(collects: bool) -> None:
    """This holds for bytes that no reader has taken, and for those taken that wait for the rest of their message."""
    pki = Pki()
    sent_bytes = 200_000

    async def wait(_: str, stream: Stream) -> None:
        if collects:
            await stream.read_to_end(1 << 20)
        await trio.sleep_forever()

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle_stream(PUSH, wait)
        await b.dial(direct_address(a))
        (connection,) = b._host.connections[a.peer_id]
        stream = await connection.muxed.open_stream()
        negotiation = prefixed(b"/multistream/1.0.0\n") + prefixed(f"{PUSH}\n".encode())
        await stream.send_all(negotiation + bytes(sent_bytes))  # at once, so that it is there while they negotiate
        (connection,) = a._host.connections[b.peer_id]
        with trio.fail_after(DEADLINE_S):
            while connection.muxed.session.unread_bytes < sent_bytes - 4096:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)
            stream.reset()
            while connection.muxed.session.unread_bytes:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_stream_of_an_unknown_protocol_is_refused() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        with pytest.raises(RemoteRefused, match="/nobody/speaks/this"):
            await b.open_stream(a.peer_id, "/nobody/speaks/this")


async def test_a_handler_that_fails_resets_its_stream() -> None:
    pki = Pki()

    async def fail(_: str, __: Stream) -> None:
        raise NetworkError("no")

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle_stream(PUSH, fail)
        await b.dial(direct_address(a))
        stream = await b.open_stream(a.peer_id, PUSH)
        with trio.fail_after(DEADLINE_S), pytest.raises(StreamReset):
            await stream.receive_some()


async def test_the_streams_of_one_peer_are_limited_and_other_peers_are_unaffected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(network_module, "MAX_STREAMS_PER_PEER", 2)
    pki = Pki()

    async def greet(_: str, stream: Stream) -> None:
        await stream.send_all(b"hello")
        await trio.sleep_forever()

    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        a.handle_stream(PUSH, greet)
        for peer in (b, c):
            await peer.dial(direct_address(a))
        with trio.fail_after(DEADLINE_S):
            for _ in range(2):
                stream = await b.open_stream(a.peer_id, PUSH)
                assert await stream.receive_some() == b"hello"
            third = await b.open_stream(a.peer_id, PUSH)
            with pytest.raises(StreamReset):
                await third.receive_some()
            assert await (await c.open_stream(a.peer_id, PUSH)).receive_some() == b"hello"
            stream.reset()


async def test_a_stream_ends_with_its_connection() -> None:
    pki = Pki()

    async def wait(_: str, stream: Stream) -> None:
        await stream.send_all(b"hello")
        await trio.sleep_forever()

    async with node(pki, "b") as b:
        async with node(pki, "a") as a:
            a.handle_stream(PUSH, wait)
            await b.dial(direct_address(a))
            stream = await b.open_stream(a.peer_id, PUSH)
            assert await stream.receive_some() == b"hello"
        with trio.fail_after(DEADLINE_S), pytest.raises(StreamReset):
            await stream.receive_some()
