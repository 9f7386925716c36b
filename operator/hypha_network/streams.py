"""Streams between peers, as the rest of the node sees them."""

from typing import Protocol

import trio

from hypha_network.errors import StreamReset

Buffer = bytes | bytearray | memoryview
CLOSE_TIMEOUT_S = 5.0


class MuxedStream(Protocol):
    """What a stream needs of the muxer."""

    async def receive_some(self, max_bytes: int | None = None) -> Buffer:
        """Return what has arrived; empty at the end."""

    async def send_all(self, data: Buffer) -> None:
        """Send all data, waiting for the peer's window."""

    async def send_eof(self) -> None:
        """Say that nothing more will be sent."""

    async def close(self) -> None:
        """Close in order."""

    async def reset(self) -> None:
        """Break off."""


class Stream:
    """A stream to a peer: two directions, each closed on its own.

    What arrived before a reset is delivered before StreamReset is raised.
    """

    def __init__(self, muxed: MuxedStream, peer_id: str) -> None:
        self._muxed = muxed
        self._unread = memoryview(b"")
        self.peer_id = peer_id

    async def receive_some(self, max_bytes: int | None = None) -> Buffer:
        """Return what has arrived, at least one byte; empty at the end. StreamReset if the stream was broken off."""
        if not self._unread:
            return await self._muxed.receive_some(max_bytes)
        taken, self._unread = (self._unread, memoryview(b"")) if max_bytes is None else _split(self._unread, max_bytes)
        return taken

    async def send_all(self, data: Buffer) -> None:
        """Send all data, as fast as the peer takes it. StreamReset if it takes no more."""
        await self._muxed.send_all(data)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; the peer may still send."""
        await self._muxed.send_eof()

    async def aclose(self) -> None:
        """Close both directions; a peer that takes nothing more is cut off after some seconds."""
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            await self._muxed.close()
        if scope.cancelled_caught:
            await self.reset()

    async def reset(self) -> None:
        """Break the stream off: the peer sees StreamReset."""
        with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
            scope.shield = True
            await self._muxed.reset()

    def push_back(self, data: Buffer) -> None:
        """Give back what was received last, to be received again."""
        self._unread = memoryview(bytes(data) + bytes(self._unread))

    async def read_exactly(self, size_bytes: int) -> bytes:
        """Return that many bytes; StreamReset if the stream ends before."""
        if len(self._unread) < size_bytes:
            parts = bytearray(self._unread)
            while len(parts) < size_bytes:
                data = await self._muxed.receive_some()
                if not data:
                    raise StreamReset(f"the stream ended after {len(parts)} of {size_bytes} bytes")
                parts += data
            self._unread = memoryview(bytes(parts))
        taken, self._unread = _split(self._unread, size_bytes)
        return bytes(taken)

    async def read_to_end(self, max_bytes: int) -> bytes:
        """Return all that the peer sends; ValueError as soon as that is more than `max_bytes`."""
        parts = bytearray()
        while data := await self.receive_some():
            parts += data
            if len(parts) > max_bytes:
                raise ValueError(f"more than {max_bytes} bytes")
        return bytes(parts)

    async def write(self, data: bytes) -> None:
        """Send all data (what negotiation calls it)."""
        await self.send_all(data)


def _split(view: memoryview, at: int) -> tuple[memoryview, memoryview]:
    return view[:at], view[at:]
