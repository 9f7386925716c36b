"""The muxer, `/yamux/1.0.0`: many streams over one secured connection.

The protocol is `hypha_network.wire.yamux_session`; here are the tasks around it. One task reads the connection in large
pieces, one writes what all streams have to send in turn, one pings. Both classes have libp2p's interfaces too.
"""

import logging
from collections.abc import Awaitable, Callable
from functools import partial

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from hypha_network.errors import ConnectionLost, NetworkError, StreamReset
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.backlog import Backlog
from hypha_network.wire.yamux_frames import NORMAL, PROTOCOL_ERROR, Buffer, Limits, ProtocolError, StreamState
from hypha_network.wire.yamux_session import Core

logger = logging.getLogger(__name__)
_violation_log = RateLimitedLogger(logger)

PROTOCOL_ID = "/yamux/1.0.0"
PING_INTERVAL_S = 30.0
SILENCE_TIMEOUT_S = 180.0
CLOSE_TIMEOUT_S = 2.0
_READ_BYTES = 256 * 1024
_PAUSE_S = 0.25
_CONNECTION_ERRORS = (BaseLibp2pError, NetworkError, OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class YamuxReset(StreamReset, MuxedStreamReset):
    """A stream was broken off; libp2p's error and ours."""


class YamuxLost(ConnectionLost, MuxedStreamReset):
    """A stream ended with its connection; libp2p's error and ours."""


class YamuxEnded(ConnectionLost, MuxedConnUnavailable):
    """The connection has ended, or is about to; libp2p's error and ours."""


class YamuxStream(IMuxedStream):
    """A stream on a connection. `read`, `write` and `close` are libp2p's, the others are for bulk."""

    def __init__(self, muxed_conn: "Yamux", state: StreamState) -> None:
        self.muxed_conn: Yamux = muxed_conn
        self._state = state
        self._core = muxed_conn.core
        self._changed = trio.lowlevel.ParkingLot()
        state.wake = self._changed.unpark_all

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return all that has arrived, up to `max_bytes`, waiting for at least one byte; empty at the end.

        Raises StreamReset if the stream was broken off (ConnectionLost: with its connection), after all that arrived.
        """
        state = self._state
        await trio.lowlevel.checkpoint()
        while not state.readable:
            await self._changed.park()
        if data := self._core.take(state, max_bytes):
            self.muxed_conn.wake_writer()
            return data
        if state.fin_received:
            return b""
        if state.failure:
            raise self._broken()
        raise trio.ClosedResourceError("the stream was closed")

    def count_collected(self, size_bytes: int) -> None:
        """Say how much of what was received waits for the rest of its message: it counts as unread."""
        self._state.collected_bytes = size_bytes

    async def send_all(self, data: Buffer) -> None:
        """Send data; returns once it is on its way. StreamReset if the stream was or is broken off.

        If this is cancelled the stream is broken off: the peer must not take a part for the whole.
        """
        state = self._state
        await trio.lowlevel.checkpoint()
        if state.failure:
            raise self._broken()
        if state.eof:
            raise trio.ClosedResourceError("the stream was closed for sending")
        view = memoryview(data).cast("B")
        if not view:
            return
        goal = self._core.send(state, view)
        self.muxed_conn.wake_writer()
        try:
            while state.sent_bytes < goal and not state.failure:
                await self._changed.park()
        except trio.Cancelled:
            self.reset_nowait("a send was cancelled")
            raise
        if state.sent_bytes < goal:
            raise self._broken()

    def _broken(self) -> StreamReset:
        failure = self._state.failure
        kind = YamuxLost if failure == self._core.failure else YamuxReset
        return kind(f"stream with {self.muxed_conn.peer_id}: {failure}")

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; the peer may still send."""
        await trio.lowlevel.checkpoint()
        if not self._state.eof and not self._state.failure:
            self._core.send_eof(self._state)
            self.muxed_conn.wake_writer()

    async def aclose(self) -> None:
        """Close both directions in order: what was sent arrives, what the peer still sends is dropped."""
        try:
            await self.send_eof()
        finally:
            self._core.abandon(self._state)
            self.muxed_conn.wake_writer()

    async def reset(self) -> None:
        """Break the stream off: what is not yet sent or taken is dropped, the peer sees a reset."""
        self.reset_nowait()
        await trio.lowlevel.checkpoint()

    def reset_nowait(self, reason: str = "reset by this node") -> None:
        """Do as `reset` does, from where nothing can be awaited."""
        self._core.reset(self._state, reason)
        self.muxed_conn.wake_writer()

    async def read(self, n: int | None = None) -> bytes:
        """Return 1 to `n` bytes, or all there are; MuxedStreamEOF at the end, MuxedStreamReset if broken off."""
        if n == 0:
            return b""
        data = await self.receive_some(n if n is not None and n > 0 else None)
        if not data:
            raise MuxedStreamEOF("the peer has sent all")
        return bytes(data)

    async def write(self, data: bytes) -> None:
        """Send data; MuxedStreamClosed after `close`, MuxedStreamReset if broken off."""
        try:
            await self.send_all(data)
        except trio.ClosedResourceError as error:
            raise MuxedStreamClosed(str(error)) from error

    async def close(self) -> None:
        """Close for sending only, as libp2p has it."""
        await self.send_eof()

    def set_deadline(self, ttl: int) -> None:
        """Not supported: use a cancel scope."""
        raise NotImplementedError("use a trio cancel scope")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the other end's address, if the connection is not relayed."""
        return self.muxed_conn.get_remote_address()

    async def __aenter__(self) -> "YamuxStream":
        return self


class Yamux(IMuxedConn):
    """A connection that carries streams while `start` runs."""

    def __init__(
        self,
        secured_conn: ISecureConn,
        peer_id: ID,
        *,
        is_initiator: bool | None = None,
        limits: Limits | None = None,
        backlog: Backlog | None = None,
        ping_interval_s: float = PING_INTERVAL_S,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
    ) -> None:
        self.secured_conn = secured_conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self._is_initiator = secured_conn.is_initiator if is_initiator is None else is_initiator
        self.core = Core(is_initiator=self._is_initiator, clock=trio.current_time, limits=limits)
        self._backlog = backlog or Backlog()
        self._backlog.add(self.core)
        self._ping_interval_s = ping_interval_s
        self._silence_timeout_s = silence_timeout_s
        self._last_received_s = trio.current_time()
        self._arrivals = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._output = trio.lowlevel.ParkingLot()
        self._write_lock = trio.Lock()
        self._running = trio.CancelScope()
        self._closing = False
        self._closed = trio.Event()

    @property
    def is_initiator(self) -> bool:
        """Whether this node dialled."""
        return self._is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.core.closing

    @property
    def is_closed(self) -> bool:
        """Whether the connection is closed."""
        return self._closed.is_set()

    async def start(self) -> None:
        """Carry streams until the connection ends, whoever ends it, and close it."""
        try:
            with self._running:
                async with trio.open_nursery() as nursery:
                    for task in (self._read, self._write, self._keep_alive):
                        nursery.start_soon(self._until_failure, task, nursery.cancel_scope)
                    self.event_started.set()
        finally:
            self.event_started.set()
            await self.close()

    async def open_stream(self) -> YamuxStream:
        """Open a stream, waiting while too many are open; YamuxEnded if the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self.core.closing and not self.core.can_open:
            await self._room.park()
        if self.core.closing:
            raise YamuxEnded(self._end_reason())
        stream = YamuxStream(self, self.core.open())
        self.wake_writer()
        return stream

    async def accept_stream(self) -> YamuxStream:
        """Return the next stream that the peer opens; YamuxEnded once the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self.core.incoming:
            if self.core.failure:
                raise YamuxEnded(self._end_reason())
            await self._arrivals.park()
        stream = YamuxStream(self, self.core.accept())
        self.wake_writer()
        return stream

    async def close(self) -> None:
        """Send what can be sent within a moment, say goodbye, and close."""
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self.core.close(NORMAL)
        try:
            with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
                scope.shield = True
                await self._quietly(self._flush)
            self._fail("closed by this node")
            with trio.move_on_after(CLOSE_TIMEOUT_S) as scope:
                scope.shield = True
                await self._quietly(self.secured_conn.close)
        finally:
            self._running.cancel()
            self._closed.set()

    def wake_writer(self) -> None:
        """Send what the core has to send; and wake those who wait for a stream to end, for one may have."""
        if self.core.has_output:
            self._output.unpark_all()
        self._room.unpark_all()

    async def _read(self) -> None:
        read_some: Callable[[], Awaitable[Buffer]]
        read_some = getattr(self.secured_conn, "read_some", None) or partial(self.secured_conn.read, _READ_BYTES)
        core = self.core
        while await self._take_in(read_some):
            self.wake_writer()
            if core.incoming:
                self._arrivals.unpark_all()
            if core.refused_streams:
                _violation_log.warning(str(self.peer_id), "opens too many streams, reset %d", core.refused_streams)
                core.refused_streams = 0
            while self._backlog.excludes(core):
                _violation_log.warning(str(self.peer_id), "sends much that waits to be read, not reading on for now")
                with trio.move_on_after(_PAUSE_S):
                    await self._room.park()
                self._last_received_s = trio.current_time()
        if core.peer_goodbye:
            _violation_log.warning(str(self.peer_id), "closed the connection with error %d", core.peer_goodbye)
        self._fail("the peer closed the connection")

    async def _take_in(self, read_some: Callable[[], Awaitable[Buffer]]) -> bool:
        """Hand the core what arrives next; False at the end. Nothing of it is kept while more is awaited."""
        data = await read_some()
        self._last_received_s = trio.current_time()
        self.core.receive(data)
        self._backlog.grow(len(data))
        return bool(data)

    async def _write(self) -> None:
        try:
            while True:
                await self._flush()
                if not self.core.has_output:
                    await self._output.park()
        except _CONNECTION_ERRORS:
            await trio.sleep(CLOSE_TIMEOUT_S)  # a peer that has gone may have sent something before: let it be read
            raise

    async def _flush(self) -> None:
        async with self._write_lock:
            while batch := self.core.take_output():
                await self.secured_conn.write(batch)

    async def _keep_alive(self) -> None:
        while (silence_s := trio.current_time() - self._last_received_s) < self._silence_timeout_s:
            self.core.ping()
            self.wake_writer()
            await trio.sleep(self._ping_interval_s)
        raise trio.BrokenResourceError(f"nothing came for {silence_s:.0f} s")

    async def _until_failure(self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await task()
        except ProtocolError as error:
            _violation_log.warning(str(self.peer_id), "breaks the muxer's protocol, closing the connection: %s", error)
            self.core.close(PROTOCOL_ERROR)
            self._fail(f"the peer broke the protocol: {error}")
        except _CONNECTION_ERRORS as error:
            logger.debug("connection with %s broke: %r", self.peer_id, error)
            self._fail(f"the connection broke: {error}")
        scope.cancel()

    async def _quietly(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except _CONNECTION_ERRORS as error:
            logger.debug("closing the connection with %s: %r", self.peer_id, error)

    def _fail(self, reason: str) -> None:
        self.core.fail(reason)
        self._arrivals.unpark_all()
        self._room.unpark_all()

    def _end_reason(self) -> str:
        return f"connection with {self.peer_id}: {self.core.failure or 'it is closing'}"

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the other end's address, if the connection is not relayed."""
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the addresses that the connection goes through."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Whether the connection is direct or relayed."""
        return self.secured_conn.get_connection_type()
