"""The muxer's tasks: streams over a connection in memory, with a clock that jumps ahead whenever all tasks wait."""

import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, memory_stream_pump

from hypha_network.errors import ConnectionLost, StreamReset
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire import yamux
from hypha_network.wire.yamux import PING_INTERVAL_S, SILENCE_TIMEOUT_S, Yamux, YamuxStream
from hypha_network.wire.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    INITIAL_WINDOW,
    NORMAL,
    PING,
    PROTOCOL_ERROR,
    RST,
    SYN,
    WINDOW_UPDATE,
    Limits,
)
from support.muxing import BLOB, PEER, MemoryConnection, RawPeer, connected, facing_raw_peer, frame

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@pytest.fixture(autouse=True)
def _log_every_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamux, "_violation_log", RateLimitedLogger(yamux.logger))


async def read_all(stream: YamuxStream) -> bytes:
    data = bytearray()
    while part := await stream.receive_some():
        data += part
    return bytes(data)


async def stream_pair(left: Yamux, right: Yamux) -> tuple[YamuxStream, YamuxStream]:
    near = await left.open_stream()
    return near, await right.accept_stream()


async def serve_echo(connection: Yamux) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await connection.accept_stream()
            except ConnectionLost:
                return
            nursery.start_soon(echo, stream)


async def echo(stream: YamuxStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.aclose()


async def test_all_bytes_arrive_in_order_in_both_directions() -> None:
    async with connected() as (left, right), trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, left)
        nursery.start_soon(serve_echo, right)

        async def ask(connection: Yamux, size: int) -> None:
            stream = await connection.open_stream()
            async with trio.open_nursery() as asking:

                @asking.start_soon
                async def send() -> None:
                    await stream.send_all(BLOB[:size])
                    await stream.send_eof()

                assert await read_all(stream) == BLOB[:size]
            await stream.aclose()

        async with trio.open_nursery() as asking:
            for size in (1, 1000, INITIAL_WINDOW, 3_000_000):
                asking.start_soon(ask, left, size)
                asking.start_soon(ask, right, size)
        assert not left.session.streams
        assert not right.session.streams
        await left.close()


async def test_received_data_can_be_taken_in_small_parts() -> None:
    async with connected() as (left, right):
        near, far = await stream_pair(left, right)
        await near.send_all(b"abcdef")
        assert await far.receive_some(4) == b"abcd"
        assert await far.receive_some(4) == b"ef"


async def test_a_read_after_the_end_returns_the_end_again() -> None:
    async with connected() as (left, right):
        near, far = await stream_pair(left, right)
        await near.send_eof()
        assert await far.receive_some() == b""
        assert await far.receive_some() == b""


async def test_data_before_a_reset_is_returned_before_the_error() -> None:
    async with facing_raw_peer() as (peer, ours):
        await peer.send(frame(DATA, SYN, 1, body=BLOB[:20_000]), frame(DATA, RST, 1))
        stream = await ours.accept_stream()
        assert await stream.receive_some(19_999) == BLOB[:19_999]
        assert await stream.receive_some() == BLOB[19_999:20_000]
        with pytest.raises(StreamReset, match="reset by the peer"):
            await stream.receive_some()
        with pytest.raises(StreamReset, match="reset by the peer"):
            await stream.send_all(b"x")


async def test_data_before_the_end_of_the_connection_is_returned_before_the_error() -> None:
    async with facing_raw_peer() as (peer, ours):
        await peer.send(frame(DATA, SYN, 1, body=b"part"), frame(DATA, SYN | FIN, 3, body=b"whole"))
        part, whole = await ours.accept_stream(), await ours.accept_stream()
        await peer.stream.aclose()
        await ours._closed.wait()
        assert await part.receive_some() == b"part"
        with pytest.raises(StreamReset, match="the peer closed the connection"):
            await part.receive_some()
        assert await read_all(whole) == b"whole"
        with pytest.raises(ConnectionLost, match="the peer closed the connection"):
            await ours.accept_stream()
        with pytest.raises(StreamReset, match="the peer closed the connection"):
            await ours.open_stream()


async def test_streams_opened_before_the_connection_ends_can_still_be_accepted() -> None:
    async with facing_raw_peer() as (peer, ours):
        await peer.send(frame(DATA, SYN | FIN, 1, body=b"last words"))
        await peer.stream.aclose()
        await ours._closed.wait()
        assert await read_all(await ours.accept_stream()) == b"last words"
        with pytest.raises(ConnectionLost):
            await ours.accept_stream()


async def test_a_stream_that_is_not_read_for_ten_minutes_does_not_block_other_streams() -> None:
    async with connected() as (left, right), trio.open_nursery() as nursery:
        near, far = await stream_pair(left, right)
        nursery.start_soon(near.send_all, BLOB)
        await trio.sleep(600)
        assert len(far._state.received) == INITIAL_WINDOW

        other, answer = await stream_pair(left, right)
        with trio.fail_after(1):
            await other.send_all(b"request")
            assert await answer.receive_some() == b"request"
            await answer.send_all(b"response")
            assert await other.receive_some() == b"response"

        got = bytearray()
        while len(got) < len(BLOB):
            got += await far.receive_some()
        assert got == BLOB
        assert not left._closed.is_set()


async def test_a_blocked_connection_blocks_its_senders_without_queueing_their_data() -> None:
    stuck, peer = memory_stream_pair()
    async with connected((stuck, peer)) as (left, right):
        near, far = await stream_pair(left, right)
        gate = trio.Event()

        async def pass_gate() -> None:
            await gate.wait()
            memory_stream_pump(stuck.send_stream, peer.receive_stream)

        stuck.send_stream.send_all_hook = pass_gate
        with trio.move_on_after(SILENCE_TIMEOUT_S / 2):
            await near.send_all(BLOB)
        assert near._state.unsent_bytes == 0
        gate.set()
        with pytest.raises(StreamReset, match="reset by the peer"):
            await read_all(far)
        assert not left._closed.is_set()


async def test_a_small_request_overtakes_bulk_data() -> None:
    writes: list[int] = []
    limits = Limits(batch_bytes=128 * 1024)
    async with connected(limits=limits) as (left, right), trio.open_nursery() as nursery:
        bulk = [await stream_pair(left, right) for _ in range(3)]
        near, far = await stream_pair(left, right)

        async def count(data: bytes, write: Any = left.secured.write) -> None:
            writes.append(len(data))
            await write(data)

        left.secured.write = count  # type: ignore[method-assign]

        async def drain(stream: YamuxStream) -> None:
            while True:
                await stream.receive_some()

        async def send(stream: YamuxStream) -> None:
            while True:
                await stream.send_all(BLOB)

        for sender, receiver in bulk:
            nursery.start_soon(drain, receiver)
            nursery.start_soon(send, sender)
        for _ in range(50):
            before = len(writes)
            await near.send_all(b"urgent")
            assert await far.receive_some() == b"urgent"
            assert len(writes) - before < 10
        assert sum(writes) > 50 * 64 * 1024
        nursery.cancel_scope.cancel()


async def test_a_cancelled_send_resets_the_stream() -> None:
    async with connected() as (left, right):
        near, far = await stream_pair(left, right)
        with trio.move_on_after(1):
            await near.send_all(BLOB)
        with pytest.raises(StreamReset, match="reset by the peer"):
            await read_all(far)
        with pytest.raises(StreamReset, match="cancelled"):
            await near.send_all(b"more")


async def test_messages_of_concurrent_senders_are_not_interleaved() -> None:
    size = INITIAL_WINDOW
    async with connected() as (left, right):
        near, far = await stream_pair(left, right)

        async def send(letter: bytes) -> None:
            await near.send_all(letter * size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, b"a")
            nursery.start_soon(send, b"b")
            got = bytearray()
            while len(got) < 2 * size:
                got += await far.receive_some()
        assert bytes(got) in (b"a" * size + b"b" * size, b"b" * size + b"a" * size)


async def test_a_local_reset_or_close_wakes_a_waiting_reader() -> None:
    async with connected() as (left, right):
        near, _ = await stream_pair(left, right)
        _, far = await stream_pair(left, right)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read_reset() -> None:
                with pytest.raises(StreamReset, match="by this node"):
                    await near.receive_some()

            @nursery.start_soon
            async def read_closed() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await far.receive_some()

            await trio.testing.wait_all_tasks_blocked()
            await far.aclose()
            near.reset()


async def test_sending_after_the_end_is_an_error() -> None:
    async with connected() as (left, right):
        near, _ = await stream_pair(left, right)
        await near.send_eof()
        await near.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"x")


async def test_opening_a_stream_beyond_the_limit_waits_until_another_ends() -> None:
    async with connected(limits=Limits(max_outbound_streams=2)) as (left, _), trio.open_nursery() as nursery:
        first, _ = await left.open_stream(), await left.open_stream()
        opened = trio.Event()

        @nursery.start_soon
        async def open_third() -> None:
            await left.open_stream()
            opened.set()

        await trio.testing.wait_all_tasks_blocked()
        assert not opened.is_set()
        first.reset()
        await opened.wait()


async def test_a_peer_receives_all_data_sent_before_the_close() -> None:
    async with connected() as (left, right):
        near, far = await stream_pair(left, right)
        await near.send_all(BLOB[:200_000])
        await near.send_eof()
        await left.close()
        assert await read_all(far) == BLOB[:200_000]
        await right._closed.wait()
        assert left._closed.is_set()


async def test_closing_a_blocked_connection_takes_only_seconds() -> None:
    stuck, peer = memory_stream_pair()
    stuck.send_stream.send_all_hook = trio.sleep_forever
    async with connected((stuck, peer)) as (left, _):
        near = await left.open_stream()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                with pytest.raises(StreamReset, match="closed by this node"):
                    await near.send_all(BLOB)

            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(5):
                await left.close()


async def test_a_muxer_that_is_cancelled_sends_go_away() -> None:
    left, right = memory_stream_pair()
    ours = Yamux(MemoryConnection(left, is_initiator=False), PEER)
    peer = RawPeer(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.start)
        await ours.event_started.wait()
        nursery.cancel_scope.cancel()
    assert await peer.next_frame(but=[PING]) == (GO_AWAY, 0, 0, NORMAL, b"")
    assert await peer.next_frame() is None
    assert ours._closed.is_set()


async def test_a_connection_never_started_can_be_closed() -> None:
    left, right = memory_stream_pair()
    ours = Yamux(MemoryConnection(left, is_initiator=False), PEER)
    await ours.close()
    assert await RawPeer(right).next_frame() == (GO_AWAY, 0, 0, NORMAL, b"")


async def test_a_connection_with_a_silent_peer_ends_after_the_timeout() -> None:
    async with facing_raw_peer() as (_, ours):
        start_s = trio.current_time()
        with pytest.raises(ConnectionLost, match="no data arrived for"):
            await ours.accept_stream()
        assert SILENCE_TIMEOUT_S <= trio.current_time() - start_s <= SILENCE_TIMEOUT_S + PING_INTERVAL_S


async def test_an_idle_connection_whose_peer_answers_pings_stays_open() -> None:
    async with connected() as (left, right):
        await trio.sleep(24 * 3600)
        near, far = await stream_pair(left, right)
        await near.send_all(b"still here")
        assert await far.receive_some() == b"still here"


async def test_a_violation_of_the_protocol_ends_the_connection_with_go_away_and_a_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with facing_raw_peer() as (peer, ours):
        await peer.send(frame(DATA, SYN, 1, body=b"fine"), frame(DATA, 0, 1, INITIAL_WINDOW))
        stream = await ours.accept_stream()
        assert await stream.receive_some() == b"fine"
        with pytest.raises(StreamReset, match="262144 bytes on stream 1 with a window of 262140"):
            await stream.receive_some()
        while (got := await peer.next_frame(but=[PING, WINDOW_UPDATE])) and got[0] != GO_AWAY:
            pass
        assert got == (GO_AWAY, 0, 0, PROTOCOL_ERROR, b"")
        assert await peer.next_frame() is None
    lines = [record for record in caplog.records if record.name == "hypha_network.wire.yamux"]
    assert [record.levelno for record in lines] == [logging.WARNING]
    assert PEER in lines[0].getMessage()
    assert "262144 bytes on stream 1" in lines[0].getMessage()


async def test_streams_beyond_the_limit_are_reset_with_one_log_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with facing_raw_peer(limits=Limits(max_inbound_streams=2)) as (peer, ours):
        for first in (1, 101, 201):
            await peer.send(*(frame(DATA, SYN, first + 2 * i, body=b"hi") for i in range(50)))
            refused = {(await peer.next_frame(but=[PING]) or ())[1] for _ in range(48)}
            assert refused == {RST}
        assert await (await ours.accept_stream()).receive_some() == b"hi"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{PEER}: opens too many streams; reset 48 of them"
    ]


async def test_an_error_code_in_the_peers_go_away_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with facing_raw_peer() as (peer, ours):
        await peer.send(frame(GO_AWAY, 0, 0, PROTOCOL_ERROR))
        await peer.stream.aclose()
        await ours._closed.wait()
    assert "closed the connection with error 1" in caplog.text


async def test_an_accepted_stream_is_acknowledged_and_pings_are_answered() -> None:
    async with facing_raw_peer() as (peer, ours):
        await peer.send(frame(PING, SYN, 0, 42), frame(WINDOW_UPDATE, SYN, 1, 0))
        await ours.accept_stream()
        kinds = {(await peer.next_frame() or ())[:4] for _ in range(3)}
        assert kinds == {(PING, SYN, 0, 1), (PING, ACK, 0, 42), (WINDOW_UPDATE, ACK, 1, 0)}
