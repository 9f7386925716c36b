"""The streams of a QUIC connection, with the interface of `hypha_network.wire.muxer`."""

from contextlib import suppress
from typing import Final, Protocol

import trio

from hypha_network.errors import ConnectionLost, StreamReset
from hypha_network.wire.processor import CpuShare
from hypha_network.wire.yamux_frames import Buffer

MAX_UNSENT_BYTES: Final = 512 * 1024
"""How many bytes of one stream the protocol holds that it has not sent for the first time."""
_PIECE_BYTES: Final = 128 * 1024
"""The data is handed to the protocol in pieces of this size."""
_NO_ERROR: Final = 0


class Carrier(Protocol):
    """The connection of streams."""

    peer_id: str
    cpu_share: CpuShare
    failure: str
    unread_bytes: int

    def unsent_bytes(self, stream_id: int) -> int:
        """Return how many bytes of a stream wait to be sent for the first time."""

    def send(self, stream: "QuicStream", data: Buffer, *, eof: bool) -> None:
        """Queue data of a stream; StreamReset if the peer has just ended the stream or the connection."""

    def abort(self, stream: "QuicStream", *, sending: bool, receiving: bool) -> None:
        """Notify the peer that this side sends or reads no more."""

    def on_read(self) -> None:
        """React to data having been read."""

    def on_end(self, stream: "QuicStream") -> None:
        """React to both directions of a stream having ended."""


class QuicStream:
    """A stream on a connection."""

    def __init__(self, connection: Carrier, stream_id: int) -> None:
        self.id = stream_id
        self._connection = connection
        self._received = bytearray()
        self._unread_bytes = 0
        self._collected_bytes = 0
        self._fin_received = False
        self._eof = False
        self._abandoned = False
        self._failure = ""
        """Why nothing more arrives and nothing more can be sent."""
        self._send_failure = ""
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()

    @property
    def unread_bytes(self) -> int:
        """The number of received bytes that are unread, or that wait for the rest of their message."""
        return self._unread_bytes + self._collected_bytes

    @property
    def ended(self) -> bool:
        """Whether both directions have ended."""
        return bool(self._failure) or (self._fin_received and (self._eof or bool(self._send_failure)))

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the data that has arrived, up to `max_bytes`; see `MuxedStream.receive_some`."""
        await trio.lowlevel.checkpoint()
        while not (self._received or self._fin_received or self._failure or self._abandoned):
            await self._readable.park()
        await self._connection.cpu_share.turn()
        if self._received:
            return self._take(max_bytes)
        if self._fin_received:
            return b""
        if self._failure:
            raise self._broken(self._failure)
        raise trio.ClosedResourceError("the stream was closed")

    def _take(self, max_bytes: int | None) -> bytearray:
        data = self._received
        if max_bytes is None or max_bytes >= len(data):
            self._received = bytearray()
        else:
            data = data[:max_bytes]
            del self._received[:max_bytes]
        self._count_unread(-len(data))
        self._connection.on_read()
        return data

    def count_collected(self, size_bytes: int) -> None:
        """Count received bytes as unread, because they wait for the rest of their message."""
        self._connection.unread_bytes += size_bytes - self._collected_bytes
        self._collected_bytes = size_bytes

    async def send_all(self, data: Buffer) -> None:
        """Send data, waiting until most of it is sent; see `MuxedStream.send_all`."""
        await trio.lowlevel.checkpoint()
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), _PIECE_BYTES):
                while self._can_send() and self._connection.unsent_bytes(self.id) >= MAX_UNSENT_BYTES:
                    await self._writable.park()
                if self._can_send():
                    self._connection.send(self, view[start : start + _PIECE_BYTES], eof=False)
        except trio.Cancelled:
            self.reset("a send was cancelled")
            raise
        self._can_send()

    def _can_send(self) -> bool:
        """Return True, or raise why nothing can be sent."""
        if failure := self._failure or self._send_failure:
            raise self._broken(failure)
        if self._eof:
            raise trio.ClosedResourceError("the stream was closed for sending")
        return True

    async def send_eof(self) -> None:
        """Close the sending direction. The peer may still send."""
        await trio.lowlevel.checkpoint()
        if not (self._eof or self._failure or self._send_failure):
            self._eof = True
            with suppress(StreamReset):  # the peer does not wait for the end any more
                self._connection.send(self, b"", eof=True)
            self._end_if_ended()

    async def aclose(self) -> None:
        """Close both directions; see `MuxedStream.aclose`."""
        try:
            await self.send_eof()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        self._abandoned = True
        self._drop_received()
        if not (self._fin_received or self._failure):
            self._connection.abort(self, sending=False, receiving=True)

    def reset(self, reason: str = "reset by this node") -> None:
        """Reset the stream: drop unsent and unread data, and send the peer a reset."""
        if not self._failure:
            sent = self._eof and not self._connection.unsent_bytes(self.id)
            self._connection.abort(self, sending=not sent, receiving=not self._fin_received)
            self.fail(reason)
        self._drop_received()

    # Called by the connection

    def feed(self, data: bytes, *, fin: bool) -> None:
        """Take data that has arrived."""
        if data and not self._abandoned and not self._failure:
            self._received += data
            self._count_unread(len(data))
        self._fin_received = self._fin_received or fin
        self._readable.unpark_all()
        self._end_if_ended()

    def on_stop(self) -> None:
        """Record that the peer reads no more."""
        self._send_failure = self._send_failure or "the peer does not read on"
        self._writable.unpark_all()
        self._end_if_ended()

    def fail(self, reason: str) -> None:
        """End the stream. Data that has arrived can still be read."""
        if not self._failure:
            self._failure = reason
            self._readable.unpark_all()
            self._writable.unpark_all()
            self._end_if_ended()

    def wake_writer(self) -> None:
        """Let a sender go on if there is space for more data."""
        if self._writable and self._connection.unsent_bytes(self.id) < MAX_UNSENT_BYTES:
            self._writable.unpark_all()

    @property
    def sending(self) -> bool:
        """Whether a sender waits."""
        return bool(self._writable)

    def _count_unread(self, size_bytes: int) -> None:
        self._unread_bytes += size_bytes
        self._connection.unread_bytes += size_bytes

    def _drop_received(self) -> None:
        self._received = bytearray()
        self._count_unread(-self._unread_bytes)
        self._readable.unpark_all()
        self._connection.on_read()

    def _end_if_ended(self) -> None:
        if self.ended:
            self._connection.on_end(self)

    def _broken(self, failure: str) -> StreamReset:
        kind = ConnectionLost if failure == self._connection.failure else StreamReset
        return kind(f"stream with {self._connection.peer_id}: {failure}")
