"""Our muxer facing py-libp2p's muxer, over a connection in memory."""

from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.yamux.yamux import Yamux as Libp2pYamux
from trio.testing import memory_stream_pair

from hypha_network.wire.yamux import Yamux
from support.muxing import BLOB, PEER, MemoryConnection, running

pytestmark = pytest.mark.anyio


class Libp2pConnection(MemoryConnection):
    """The same connection in memory with py-libp2p's interface."""

    async def read(self, n: int | None = None) -> bytes:
        try:
            return bytes(await self.stream.receive_some(n))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError(str(error)) from error

    def get_remote_address(self) -> None:
        return None


@asynccontextmanager
async def facing_libp2p(*, ours_dials: bool) -> Any:
    """Both muxers, running: ours and py-libp2p's."""
    left, right = memory_stream_pair()
    ours = Yamux(MemoryConnection(left, is_initiator=ours_dials), PEER)
    theirs = Libp2pYamux(
        Libp2pConnection(right, is_initiator=not ours_dials),  # type: ignore[arg-type]
        ID.from_base58(PEER),
        is_initiator=not ours_dials,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(theirs.start)
        await theirs.event_started.wait()
        async with running(ours):
            yield ours, theirs
        nursery.cancel_scope.cancel()


async def read_from_libp2p(stream: Any) -> bytes:
    received = bytearray()
    while len(received) < len(BLOB):
        received += await stream.read(65536)
    return bytes(received)


@pytest.mark.parametrize("ours_dials", [True, False])
async def test_a_stream_that_our_muxer_opens_carries_data_both_ways(ours_dials: bool) -> None:
    with trio.fail_after(60):
        async with facing_libp2p(ours_dials=ours_dials) as (ours, theirs), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def echo() -> None:
                stream = await theirs.accept_stream()
                await stream.write(await read_from_libp2p(stream))
                await stream.close()

            stream = await ours.open_stream()
            await stream.send_all(BLOB)
            await stream.send_eof()
            received = bytearray()
            while data := await stream.receive_some():
                received += data
            assert received == BLOB


@pytest.mark.parametrize("ours_dials", [True, False])
async def test_a_stream_that_libp2ps_muxer_opens_carries_data_both_ways(ours_dials: bool) -> None:
    with trio.fail_after(60):
        async with facing_libp2p(ours_dials=ours_dials) as (ours, theirs), trio.open_nursery() as nursery:

            @nursery.start_soon
            async def echo() -> None:
                stream = await ours.accept_stream()
                while data := await stream.receive_some():
                    await stream.send_all(data)
                await stream.aclose()

            stream = await theirs.open_stream()
            nursery.start_soon(stream.write, BLOB)
            assert await read_from_libp2p(stream) == BLOB
            await stream.close()


async def test_libp2ps_muxer_answers_our_ping() -> None:
    with trio.fail_after(60):
        async with facing_libp2p(ours_dials=True) as (ours, _):
            while ours.session.rtt_s is None:  # noqa: ASYNC110 - our own ping, sent at start
                await trio.sleep(0.01)
