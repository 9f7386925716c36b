"""Streams between peers, as the rest of the node sees them."""

from hypha_network.errors import StreamReset
from hypha_network.wire.yamux import YamuxStream

Buffer = bytes | bytearray | memoryview

_READ_AHEAD_BYTES = 4096
"""What may be taken beyond what was asked for. All else waits in the muxer, which counts it and holds the peer back."""


class Stream:
    """A stream to a peer: two directions, each closed on its own.

    What arrived before a reset is delivered before StreamReset is raised.
    """

    def __init__(self, muxed: YamuxStream, peer_id: str) -> None:
        self._muxed = muxed
        self._unread = memoryview(b"")
        self.peer_id = peer_id

    async def receive_some(self, max_bytes: int | None = None) -> Buffer:
        """Return what has arrived, at least one byte; empty at the end. StreamReset if the stream was broken off."""
        if not self._unread:
            return await self._muxed.receive_some(max_bytes)
        return self._take(len(self._unread) if max_bytes is None else max_bytes)

    async def send_all(self, data: Buffer) -> None:
        """Send all data, as fast as the peer takes it. StreamReset if it takes no more."""
        await self._muxed.send_all(data)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; the peer may still send."""
        await self._muxed.send_eof()

    async def aclose(self) -> None:
        """Close both directions: what was sent still arrives, what the peer still sends is dropped."""
        await self._muxed.aclose()

    def reset(self) -> None:
        """Break the stream off: what is under way is dropped, the peer sees StreamReset."""
        self._muxed.reset()

    def push_back(self, data: Buffer) -> None:
        """Give back what was received last, to be received again."""
        self._unread = memoryview(bytes(data) + bytes(self._unread))

    async def read_exactly(self, size_bytes: int) -> Buffer:
        """Return that many bytes; StreamReset if the stream ends before."""
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
        """Return all that the peer sends; ValueError as soon as that is more than `max_bytes`.

        Until the end has come, what came counts as unread.
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

    async def write(self, data: bytes) -> None:
        """Send all data (what negotiation calls it)."""
        await self.send_all(data)

    def _take(self, size_bytes: int) -> memoryview:
        # An empty slice would keep all of what was read.
        taken, self._unread = self._unread[:size_bytes], self._unread[size_bytes:] or memoryview(b"")
        return taken
