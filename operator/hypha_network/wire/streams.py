"""Streams between peers, as this package's callers use them."""

from hypha_network.errors import StreamReset
from hypha_network.wire.muxer import MuxedStream
from hypha_network.wire.yamux_frames import Buffer

_READ_AHEAD_BYTES = 4096
"""Maximum number of bytes to read ahead. The rest waits in the muxer, which slows the peer down."""


class Stream:
    """A stream to a peer. Its two directions are closed separately.

    Data that arrived before a reset is returned before StreamReset is raised.
    """

    def __init__(self, muxed: MuxedStream, peer_id: str) -> None:
        self._muxed = muxed
        self._unread = memoryview(b"")
        self.peer_id = peer_id

    @property
    def id(self) -> int:
        """The number of the stream in its connection."""
        return self._muxed.id

    async def receive_some(self, max_bytes: int | None = None) -> Buffer:
        """Return the data that has arrived, at least one byte; empty at the end. StreamReset after a reset."""
        if not self._unread:
            return await self._muxed.receive_some(max_bytes)
        return self._take(len(self._unread) if max_bytes is None else max_bytes)

    async def send_all(self, data: Buffer) -> None:
        """Send all data, as fast as the peer reads it. StreamReset if the stream was reset."""
        await self._muxed.send_all(data)

    write = send_all  # the name in `multistream.Channel`

    async def send_eof(self) -> None:
        """Close the sending direction. The peer may still send."""
        await self._muxed.send_eof()

    async def aclose(self) -> None:
        """Close both directions. The peer still receives all sent data; later data is dropped."""
        await self._muxed.aclose()

    def reset(self) -> None:
        """Reset the stream: drop data in transit, and have the peer get StreamReset."""
        self._muxed.reset()

    def push_back(self, data: Buffer) -> None:
        """Return received data to the stream, so that the next call receives it again."""
        self._unread = memoryview(bytes(data) + bytes(self._unread))

    async def read_exactly(self, size_bytes: int) -> Buffer:
        """Return that many bytes; StreamReset if the stream ends earlier."""
        if len(self._unread) < size_bytes:
            parts = bytearray(self._unread)
            while len(parts) < size_bytes:
                data = await self._muxed.receive_some(max(size_bytes - len(parts), _READ_AHEAD_BYTES))
                if not data:
                    raise StreamReset(f"the stream ended after {len(parts)} of {size_bytes} bytes")
                parts += data
            self._unread = memoryview(bytes(parts))
        return self._take(size_bytes)

    async def read_to_end(self, max_bytes: int) -> bytes:
        """Return all data up to the end; ValueError as soon as it is more than `max_bytes`.

        The data counts as unread until this returns.
        """
        parts = bytearray()
        try:
            while data := await self.receive_some():
                parts += data
                self._muxed.count_collected(len(parts))
                if len(parts) > max_bytes:
                    raise ValueError(f"more than {max_bytes} bytes")
            return bytes(parts)
        finally:
            self._muxed.count_collected(0)

    def _take(self, size_bytes: int) -> memoryview:
        # An empty slice would keep the complete buffer in memory.
        taken, self._unread = self._unread[:size_bytes], self._unread[size_bytes:] or memoryview(b"")
        return taken
