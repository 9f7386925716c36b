"""Unread bytes are bounded over all connections, by pausing the connections that sent most of them."""

import pytest
import trio

from hypha_network.wire import backlog as backlog_module
from hypha_network.wire.backlog import SMALL_BYTES, Backlog
from hypha_network.wire.streams import Stream
from hypha_network.wire.yamux_frames import DATA, SYN, WINDOW_UPDATE
from hypha_network.wire.yamux_session import YamuxSession
from support.certs import Pki
from support.muxing import frame, session
from support.networks import DEADLINE_S, direct_address, node


@pytest.fixture(autouse=True)
def _measured_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog_module, "_MEASURED_FOR_S", -1.0)


def receive(backlog: Backlog, side: YamuxSession, stream_id: int, size_bytes: int) -> None:
    side.receive(frame(WINDOW_UPDATE, SYN, stream_id, 0) + frame(DATA, 0, stream_id, body=bytes(size_bytes)))
    backlog.grow(size_bytes)


def test_above_the_limit_only_connections_above_their_share_are_paused() -> None:
    backlog = Backlog(limit_bytes=4 * SMALL_BYTES)
    greedy, modest = session(), session()
    for side in (greedy, modest):
        backlog.add(side)
    receive(backlog, modest, 1, SMALL_BYTES)
    for number in range(3):
        receive(backlog, greedy, 1 + 2 * number, SMALL_BYTES)
    assert not backlog.pauses(greedy)
    receive(backlog, greedy, 9, 1000)
    assert backlog.pauses(greedy)
    assert not backlog.pauses(modest)


def test_reading_or_resetting_a_stream_reduces_the_backlog() -> None:
    backlog = Backlog(limit_bytes=2 * SMALL_BYTES)
    side = session()
    backlog.add(side)
    for number in range(4):
        receive(backlog, side, 1 + 2 * number, SMALL_BYTES)
    assert backlog.pauses(side)
    side.take(side.streams[1])
    assert backlog.pauses(side)
    side.reset(side.streams[3], "enough")
    assert not backlog.pauses(side)


def test_an_ended_connection_no_longer_counts() -> None:
    backlog = Backlog(limit_bytes=2 * SMALL_BYTES)
    gone, side = session(), session()
    for other in (gone, side):
        backlog.add(other)
        for number in range(2):
            receive(backlog, other, 1 + 2 * number, SMALL_BYTES)
    assert backlog.pauses(side)
    gone.fail("gone")
    assert not backlog.pauses(side)


@pytest.mark.anyio
async def test_a_peer_whose_streams_are_unread_is_paused_until_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "peer") as peer, node(pki, "other") as other:
        monkeypatch.setattr(victim._host.upgrader._backlog, "_limit_bytes", 2 * SMALL_BYTES)
        read, taken = trio.Event(), 0

        async def reader(_: str, stream: Stream) -> None:
            nonlocal taken
            await read.wait()
            while data := await stream.receive_some():
                taken += len(data)

        async def answer(_: str, stream: Stream) -> None:
            await stream.send_all(b"here")

        victim.handle_stream("/read", reader)
        victim.handle_stream("/ask", answer)
        await peer.dial(direct_address(victim))
        await other.dial(direct_address(victim))

        async def send() -> None:
            stream = await peer.open_stream(victim.peer_id, "/read")
            await stream.send_all(bytes(200_000))
            await stream.send_eof()
            assert await stream.read_to_end(1) == b""

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(send)
                (connection,) = victim._host.connections[peer.peer_id]
                while connection.muxed.session.unread_bytes <= 2 * SMALL_BYTES:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                for _ in range(20):
                    stream = await other.open_stream(victim.peer_id, "/ask")
                    assert await stream.read_to_end(10) == b"here"
                assert connection.muxed.session.unread_bytes < 8 * SMALL_BYTES
                read.set()
        assert taken == 20 * 200_000
