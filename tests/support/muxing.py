"""Two ends of a muxed connection in memory, and frames written by hand."""

import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import memory_stream_pair

from hypha_network.wire.yamux import Yamux
from hypha_network.wire.yamux_frames import HEADER, HEADER_BYTES, Limits, StreamState
from hypha_network.wire.yamux_session import YamuxSession

PEER = "12D3KooWAYCGPqw2aTDdoAk7qHxRKPFqqnByvBmFUVtnn1A6yTKV"
BLOB = random.Random(1).randbytes(4 * 1024 * 1024)

Frame = tuple[int, int, int, int, bytes]
"""Type, flags, stream id, length, body."""


class MemoryConnection:
    """A secured connection without security."""

    def __init__(self, stream: Any, *, is_initiator: bool) -> None:
        self.stream = stream
        self.is_initiator = is_initiator

    async def read_some(self) -> bytes:
        return bytes(await self.stream.receive_some(1024 * 1024))

    async def write(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def close(self) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def running(*ends: Yamux) -> AsyncIterator[None]:
    """Run the connections, and close them at the end."""
    async with trio.open_nursery() as nursery:
        for end in ends:
            nursery.start_soon(end.start)
        yield
        for end in ends:
            nursery.start_soon(end.close)


@asynccontextmanager
async def connected(streams: tuple[Any, Any] | None = None, **options: Any) -> AsyncIterator[tuple[Yamux, Yamux]]:
    """Open a connection; yield the dialling end and the listening end."""
    left, right = streams or memory_stream_pair()
    dialling = Yamux(MemoryConnection(left, is_initiator=True), PEER, **options)
    listening = Yamux(MemoryConnection(right, is_initiator=False), PEER, **options)
    async with running(dialling, listening):
        yield dialling, listening


class RawPeer:
    """A dialling peer whose frames are written by hand."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._unparsed = b""

    async def send(self, *frames: bytes) -> None:
        await self.stream.send_all(b"".join(frames))

    async def next_frame(self, *, but: Iterable[int] = ()) -> Frame | None:
        """Return the next frame whose type is not in `but`, or None at the end."""
        while True:
            frames, self._unparsed = parse(self._unparsed, at_most=1)
            if frames and frames[0][0] not in but:
                return frames[0]
            if not frames:
                data = await self.stream.receive_some()
                if not data:
                    return None
                self._unparsed += data


@asynccontextmanager
async def facing_raw_peer(**options: Any) -> AsyncIterator[tuple[RawPeer, Yamux]]:
    """Open a connection from a peer that writes raw frames; yield the peer and our end."""
    left, right = memory_stream_pair()
    ours = Yamux(MemoryConnection(right, is_initiator=False), PEER, **options)
    async with running(ours):
        yield RawPeer(left), ours


def frame(
    kind: int, flags: int, stream_id: int, length: int | None = None, body: bytes = b"", version: int = 0
) -> bytes:
    return HEADER.pack(version, kind, flags, stream_id, len(body) if length is None else length) + body


def parse(data: bytes, at_most: int | None = None) -> tuple[list[Frame], bytes]:
    """Return the complete frames at the start of the data, and the rest."""
    frames: list[Frame] = []
    while len(data) >= HEADER_BYTES and (at_most is None or len(frames) < at_most):
        _, kind, flags, stream_id, length = HEADER.unpack_from(data)
        end = HEADER_BYTES + (length if kind == 0 else 0)
        if len(data) < end:
            break
        frames.append((kind, flags, stream_id, length, data[HEADER_BYTES:end]))
        data = data[end:]
    return frames, data


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def session(*, is_initiator: bool = False, limits: Limits | None = None, clock: Clock | None = None) -> YamuxSession:
    return YamuxSession(is_initiator=is_initiator, clock=clock or Clock(), limits=limits)


def receive_all(side: YamuxSession, data: bytes) -> None:
    """Have a session process bytes, in as many parts as it needs."""
    while data:
        data = data[side.receive(data) :]


def output(side: YamuxSession) -> list[Frame]:
    """Return all frames that a session has to send."""
    frames, rest = parse(b"".join(iter(side.take_output, b"")))
    assert not rest
    return frames


def exchange(left: YamuxSession, right: YamuxSession) -> None:
    """Deliver all frames that both sessions have to send."""
    while left.has_output or right.has_output:
        receive_all(right, left.take_output())
        receive_all(left, right.take_output())


def open_pair(left: YamuxSession, right: YamuxSession) -> tuple[StreamState, StreamState]:
    """A stream that the left side opened and the right side accepted."""
    near = left.open()
    exchange(left, right)
    far = right.accept()
    exchange(left, right)
    return near, far
