"""The muxer, `/yamux/1.0.0`: many streams over one secured connection.

`hypha_network.wire.yamux_session` implements the protocol. This module runs its tasks: one reads the connection in
large pieces, one writes the data of all streams in turn, and one pings.
"""

import logging
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Protocol

import trio

from hypha_network.errors import ConnectionLost, NetworkError, StreamReset
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.backlog import Backlog
from hypha_network.wire.processor import CpuShare
from hypha_network.wire.yamux_frames import NORMAL, PROTOCOL_ERROR, Buffer, Limits, ProtocolError, StreamState
from hypha_network.wire.yamux_session import YamuxSession

logger = logging.getLogger(__name__)
_violation_log = RateLimitedLogger(logger)

PROTOCOL_ID = "/yamux/1.0.0"
PING_INTERVAL_S = 30.0
SILENCE_TIMEOUT_S = 180.0
CLOSE_TIMEOUT_S = 2.0
_PAUSE_S = 0.25
"""Maximum time between two checks of whether a paused connection may be read again."""
_CONNECTION_ERRORS = (NetworkError, trio.BrokenResourceError, trio.ClosedResourceError)


class SecuredConnection(Protocol):
    """The connection below the muxer. A failed call raises NetworkError."""

    is_initiator: bool

    async def read_some(self) -> Buffer:
        """Return the data that has arrived, at least one byte; empty at the end."""

    async def write(self, data: bytes) -> None:
        """Send all data."""

    async def close(self) -> None:
        """Close."""


class YamuxStream:
    """A stream on a connection."""

    def __init__(self, connection: "Yamux", state: StreamState) -> None:
        self.connection: Yamux = connection
        self._state = state
        self._session = connection.session
        self._changed = trio.lowlevel.ParkingLot()
        state.wake = self._changed.unpark_all

    @property
    def id(self) -> int:
        """The number of the stream in its connection."""
        return self._state.stream_id

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Return the data that has arrived, up to `max_bytes`, waiting for at least one byte; empty at the end.

        Once all data is returned, raises StreamReset if the stream was reset, ConnectionLost if its connection ended.
        """
        state = self._state
        await trio.lowlevel.checkpoint()
        while not state.readable:
            await self._changed.park()
        await self.connection.cpu_share.turn()
        if data := self._session.take(state, max_bytes):
            self.connection.wake_writer()
            return data
        if state.fin_received:
            return b""
        if state.failure:
            raise self._broken()
        raise trio.ClosedResourceError("the stream was closed")

    def count_collected(self, size_bytes: int) -> None:
        """Count received bytes as unread, because they wait for the rest of their message."""
        self._state.collected_bytes = size_bytes

    async def send_all(self, data: Buffer) -> None:
        """Send data, waiting until all of it is passed to the connection. StreamReset if the stream was reset.

        Cancelling this resets the stream, so that the peer does not mistake a part of the data for all of it.
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
        goal = self._session.send(state, view)
        self.connection.wake_writer()
        try:
            while state.sent_bytes < goal and not state.failure:
                await self._changed.park()
        except trio.Cancelled:
            self.reset("a send was cancelled")
            raise
        if state.sent_bytes < goal:
            raise self._broken()

    def _broken(self) -> StreamReset:
        failure = self._state.failure
        kind = ConnectionLost if failure == self._session.failure else StreamReset
        return kind(f"stream with {self.connection.peer_id}: {failure}")

    async def send_eof(self) -> None:
        """Close the sending direction. The peer may still send."""
        await trio.lowlevel.checkpoint()
        if not self._state.eof and not self._state.failure:
            self._session.send_eof(self._state)
            self.connection.wake_writer()

    async def aclose(self) -> None:
        """Close both directions. The peer still receives all sent data; data that arrives from now on is dropped."""
        try:
            await self.send_eof()
        finally:
            self._session.abandon(self._state)
            self.connection.wake_writer()

    def reset(self, reason: str = "reset by this node") -> None:
        """Reset the stream: drop unsent and unread data, and send the peer a reset."""
        self._session.reset(self._state, reason)
        self.connection.wake_writer()


class Yamux:
    """A connection that carries streams while `start` runs."""

    def __init__(
        self,
        secured: SecuredConnection,
        peer_id: str,
        *,
        limits: Limits | None = None,
        backlog: Backlog | None = None,
        cpu_share: CpuShare | None = None,
        ping_interval_s: float = PING_INTERVAL_S,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
    ) -> None:
        self.secured = secured
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.session = YamuxSession(is_initiator=secured.is_initiator, clock=trio.current_time, limits=limits)
        self.cpu_share = cpu_share or CpuShare()
        self._backlog = backlog or Backlog()
        self._backlog.add(self.session)
        self._ping_interval_s = ping_interval_s
        self._silence_timeout_s = silence_timeout_s
        self.received_bytes = 0
        self.sent_bytes = 0
        self.last_received_s = trio.current_time()
        """When data arrived last, in seconds of trio's clock."""
        self._arrivals = trio.lowlevel.ParkingLot()
        self._progress = trio.lowlevel.ParkingLot()
        self._output = trio.lowlevel.ParkingLot()
        self._write_lock = trio.Lock()
        self._running = trio.CancelScope()
        self._closing = False
        self._closed = trio.Event()

    @property
    def open_streams(self) -> AbstractSet[int]:
        """The numbers of the streams that have not ended."""
        return self.session.streams.keys()

    @property
    def latest_rtt_s(self) -> float | None:
        """The latest measured round trip in seconds; None before the first."""
        return self.session.latest_rtt_s

    async def start(self) -> None:
        """Carry streams until either side ends the connection, then close it."""
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
        """Open a stream, waiting while too many are open. ConnectionLost if the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self.session.closing and not self.session.can_open:
            await self._progress.park()
        if self.session.closing:
            raise ConnectionLost(self._end_reason())
        stream = YamuxStream(self, self.session.open())
        self.wake_writer()
        return stream

    async def accept_stream(self) -> YamuxStream:
        """Return the next stream that the peer opens; ConnectionLost once the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self.session.incoming:
            if self.session.failure:
                raise ConnectionLost(self._end_reason())
            await self._arrivals.park()
        await self.cpu_share.turn()
        stream = YamuxStream(self, self.session.accept())
        self.wake_writer()
        return stream

    async def close(self) -> None:
        """Send queued data for a short time, then the GO_AWAY frame, and close."""
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self.session.close(NORMAL)
        try:
            scope = trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True)
            with scope, suppress(*_CONNECTION_ERRORS):
                await self._flush()
            self._fail("closed by this node")
            scope = trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True)
            with scope, suppress(*_CONNECTION_ERRORS):
                await self.secured.close()
        finally:
            self._running.cancel()
            self._closed.set()

    def ping(self) -> None:
        """Send a ping, which every peer answers."""
        self.session.ping()
        self.wake_writer()

    def wake_writer(self) -> None:
        """Wake the writer if there is output, and the tasks that wait for a stream to end, because one may have."""
        if self.session.has_output:
            self._output.unpark_all()
        self._progress.unpark_all()

    async def _read(self) -> None:
        session = self.session
        while await self._take_in():
            if session.refused_streams:
                _violation_log.warning(
                    self.peer_id, "opens too many streams; reset %d of them", session.refused_streams
                )
                session.refused_streams = 0
            while self._backlog.pauses(session):
                _violation_log.warning(self.peer_id, "has sent too much unread data; pausing its connection")
                with trio.move_on_after(_PAUSE_S):
                    await self._progress.park()
                self.last_received_s = trio.current_time()
        if session.peer_go_away:
            _violation_log.warning(self.peer_id, "closed the connection with error %d", session.peer_go_away)
        self._fail("the peer closed the connection")

    async def _take_in(self) -> bool:
        """Pass the next data to the session; False at the end. No variable keeps the data while more is awaited."""
        data = await self.secured.read_some()
        self.last_received_s = trio.current_time()
        self.received_bytes += len(data)
        self._backlog.grow(len(data))
        unparsed = memoryview(data)
        while unparsed:
            await self.cpu_share.turn()
            unparsed = unparsed[self.session.receive(unparsed) :]
            self.wake_writer()
            if self.session.incoming:
                self._arrivals.unpark_all()
            if unparsed:
                await trio.lowlevel.checkpoint()
        return bool(data)

    async def _write(self) -> None:
        try:
            while True:
                await self._flush()
                if not self.session.has_output:
                    await self._output.park()
        except _CONNECTION_ERRORS:
            await trio.sleep(CLOSE_TIMEOUT_S)  # the peer may have sent data before it closed, which _read still reads
            raise

    async def _flush(self) -> None:
        async with self._write_lock:
            while batch := self.session.take_output():
                await self.secured.write(batch)
                self.sent_bytes += len(batch)

    async def _keep_alive(self) -> None:
        while (silence_s := trio.current_time() - self.last_received_s) < self._silence_timeout_s:
            self.ping()
            await trio.sleep(self._ping_interval_s)
        raise trio.BrokenResourceError(f"no data arrived for {silence_s:.0f} s")

    async def _until_failure(self, task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            await task()
        except ProtocolError as error:
            _violation_log.warning(self.peer_id, "violates the muxer's protocol; closing the connection: %s", error)
            self.session.close(PROTOCOL_ERROR)
            self._fail(f"the peer violated the protocol: {error}")
        except _CONNECTION_ERRORS as error:
            logger.debug("the connection with %s failed: %r", self.peer_id, error)
            self._fail(f"the connection failed: {error}")
        scope.cancel()

    def _fail(self, reason: str) -> None:
        self.session.fail(reason)
        self._arrivals.unpark_all()
        self._progress.unpark_all()

    def _end_reason(self) -> str:
        return f"connection with {self.peer_id}: {self.session.failure or 'it is closing'}"
