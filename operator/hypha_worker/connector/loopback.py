"""A stream from this node to itself, because two of its jobs may push to each other and it cannot dial itself."""

import trio

from hypha_network.errors import StreamReset
from hypha_network.wire.yamux_frames import Buffer

_MAX_PIECES = 4


class LoopbackStream:
    """One end of a stream. It behaves like `hypha_network.wire.streams.Stream`. `loopback` makes a pair."""

    def __init__(
        self, outgoing: trio.MemorySendChannel[bytes], incoming: trio.MemoryReceiveChannel[bytes], broken: trio.Event
    ) -> None:
        self._outgoing = outgoing
        self._incoming = incoming
        self._broken = broken
        self._unread = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the data that has arrived. Empty at the end. StreamReset if the other end was reset."""
        if not self._unread:
            try:
                self._unread = await self._incoming.receive()
            except (trio.EndOfChannel, trio.ClosedResourceError) as error:
                if self._broken.is_set():
                    raise StreamReset("the other job of this worker reset the stream") from error
                return b""
        taken, self._unread = self._unread[:max_bytes], self._unread[max_bytes:] if max_bytes is not None else b""
        return taken

    def push_back(self, data: Buffer) -> None:
        """Return the last data to the stream, to be received again."""
        self._unread = bytes(data) + self._unread

    async def send_all(self, data: Buffer) -> None:
        """Send all data as fast as the other end takes it. StreamReset if it is closed."""
        try:
            await self._outgoing.send(bytes(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StreamReset("the other job of this worker closed the stream") from error

    async def send_eof(self) -> None:
        """End the outgoing direction."""
        self._outgoing.close()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close both directions."""
        self._incoming.close()
        await self.send_eof()

    def reset(self) -> None:
        """Reset the stream."""
        self._broken.set()
        self._incoming.close()
        self._outgoing.close()


def loopback() -> tuple[LoopbackStream, LoopbackStream]:
    """Return both ends of a stream."""
    there_in, there_out = trio.open_memory_channel[bytes](_MAX_PIECES)
    back_in, back_out = trio.open_memory_channel[bytes](_MAX_PIECES)
    broken = trio.Event()
    return LoopbackStream(there_in, back_out, broken), LoopbackStream(back_in, there_out, broken)
