"""A QUIC connection: the handshake with the network's certificates, and then many streams.

qh3 implements the protocol without input or output. `QuicConnection` runs it: it waits for datagrams and timers, passes
them to the protocol, and sends what the protocol has to send.
"""

import logging
import math
from collections import deque
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NoReturn, Self

import trio
from cryptography import x509
from qh3.quic import events
from qh3.quic.connection import QuicConnectionError
from qh3.tls import AlertDescription

from hypha_network.certificates import expiry, peer_id_of
from hypha_network.errors import ConnectionBroken, ConnectionLost, HandshakeError, IdentityError, StreamReset
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.backlog import Backlog
from hypha_network.wire.certificate_path import PathRefusedError, verified_path
from hypha_network.wire.processor import CpuShare
from hypha_network.wire.quic_alerts import alert_for, end_reason
from hypha_network.wire.quic_streams import QuicStream
from hypha_network.wire.quic_tls import NetworkConnection, Refused
from hypha_network.wire.tls import TlsTransport, handshake_failure
from hypha_network.wire.udp import MAX_WAITING, UdpPath
from hypha_network.wire.yamux_frames import Buffer

logger = logging.getLogger(__name__)
_violation_log = RateLimitedLogger(logger)
logging.getLogger("quic").setLevel(logging.CRITICAL)  # qh3 warns of every connection that a peer closes

IDLE_TIMEOUT_S: Final = 30.0
PING_INTERVAL_S: Final = 8.0
"""Shorter than the 10 s after which the reference gives an idle connection up."""
CLOSE_TIMEOUT_S: Final = 2.0
MAX_UNREAD_BYTES: Final = 16 * 1024 * 1024
"""Above this, the peer gets no more credit until data is read. At most the window may arrive in addition."""
CONNECTION_WINDOW_BYTES: Final = 8 * 1024 * 1024
STREAM_WINDOW_BYTES: Final = 8 * 1024 * 1024
STALL_S: Final = 10.0
"""If nothing of a paused connection is read for this long, its stream with most unread data is reset."""
MAX_INCOMING: Final = 256
"""Maximum number of streams that the peer opened and the host has not accepted yet. More are reset."""
_HELD_CHECK_S: Final = 0.25
_NO_ERROR: Final = 0
_STREAM_LIMIT_ERROR: Final = 0x4
_SETTINGS: Final[dict[str, Any]] = {
    "idle_timeout": IDLE_TIMEOUT_S,
    "max_data": CONNECTION_WINDOW_BYTES,
    "max_stream_data": STREAM_WINDOW_BYTES,
}
_REFUSALS: Final = (QuicConnectionError, ValueError)
"""Errors of qh3 for calls that the state of a stream or of the connection does not allow any more."""
_FIRST_IDS: Final = ("original_destination_connection_id", "retry_source_connection_id")


class QuicConnection:
    """A connection that carries streams while `start` runs. Call `handshake` first.

    Args:
        path: the way to the peer.
        tls: the identity, and the connections that it is used for.
        expected: the peer that must answer; with None, every peer of the network may.
        backlog: the unread data of all connections.
    """

    def __init__(self, path: UdpPath, tls: TlsTransport, expected: str | None, backlog: Backlog) -> None:
        self._udp = path
        path.owned = True
        self._tls = tls
        self._expected = expected
        self._backlog = backlog
        server = dict(zip(_FIRST_IDS, path.first_ids or (), strict=False))
        self._quic = NetworkConnection(tls.identity, self._verify, _SETTINGS, **server)
        self.is_initiator = path.is_initiator
        self.peer_id = ""
        """Known once the handshake is complete."""
        self.path: list[x509.Certificate] = []
        """The verified chain of the peer: its own certificate first, the trust anchor last."""
        self.valid_until: datetime
        self.cpu_share = CpuShare()
        self.event_started = trio.Event()
        self.failure = ""
        """Why the connection ended; empty if it has not."""
        self.unread_bytes = self.received_bytes = self.sent_bytes = 0
        self.last_received_s = trio.current_time()
        self._last_read_s = self._pinged_s = trio.current_time()
        self._streams: dict[int, QuicStream] = {}
        self._incoming: deque[QuicStream] = deque()
        self._unannounced: set[int] = set()
        """Streams of the peer that it opened by opening a later one."""
        self._next_peer_id = 1 if path.is_initiator else 0
        self._arrivals = trio.lowlevel.ParkingLot()
        self._progress = trio.lowlevel.ParkingLot()
        self._driving = trio.Lock()
        self._running = trio.CancelScope()
        self._closing = False
        self._closed = trio.Event()

    # The handshake

    async def handshake(self) -> Self:
        """Complete the handshake, and return this connection. The caller limits its time.

        Raises:
            HandshakeError: either side refuses the other.
            ConnectionBroken: the connection failed.
        """
        try:
            await self._shake_hands()
        except BaseException as error:
            self.drop()
            if isinstance(error, HandshakeError):
                raise handshake_failure(self._udp, error) from error
            raise
        return self

    async def _shake_hands(self) -> None:
        self._udp.add_id(self._quic.host_cid)
        if self.is_initiator:
            self._quic.connect(self._udp.remote, trio.current_time())
            await self._transmit()
        while not self._quic.confirmed:
            await self._step()
            if self.failure:
                raise (HandshakeError if self._quic.refused else ConnectionBroken)(self.failure)
        if refusal := self._tls.identity.refusal(self.path):  # the identity may have been replaced meanwhile
            raise HandshakeError(refusal)
        self._udp.max_waiting = MAX_WAITING
        self.valid_until = expiry(self.path)
        self._backlog.add(self)
        self._tls.track(self)

    def _verify(self, chain: list[bytes]) -> None:
        identity = self._tls.identity
        try:
            path = verified_path(identity, chain, of_server=self.is_initiator)
            peer_id = peer_id_of(path[0])
        except PathRefusedError as error:
            raise Refused(str(error), alert_for(error)) from error
        except IdentityError as error:
            raise Refused(str(error)) from error
        if self._expected is not None and peer_id != self._expected:
            raise Refused(f"dialled {self._expected}, but {peer_id} answered", AlertDescription.access_denied)
        if refusal := identity.refusal(path):
            raise Refused(refusal, AlertDescription.certificate_unknown)
        self.path, self.peer_id = path, peer_id

    # The connection

    async def start(self) -> None:
        """Carry streams until either side ends the connection, then close it."""
        try:
            with self._running:
                async with self._driving:
                    self.event_started.set()
                    while not self.failure:
                        await self._step()
        finally:
            self.event_started.set()
            await self.close()

    async def close(self) -> None:
        """Send queued data for a short time, notify the peer, and close."""
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        self._running.cancel()
        try:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                async with self._driving:
                    while not self.failure and self._quic.unfinished:
                        await self._step()
            scope = trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True)
            with scope, suppress(*_REFUSALS):
                self._quic.close(_NO_ERROR)
                await self._transmit()
        finally:
            self._fail("closed by this node")
            self._udp.detach()
            self._closed.set()

    def drop(self) -> None:
        """Notify the peer and close, without sending queued data."""
        self._closing = True
        with suppress(*_REFUSALS):
            self._quic.close(_NO_ERROR)
            for datagram, _ in self._quic.datagrams_to_send(trio.current_time()):
                self._udp.send_now(datagram)
        self._fail("closed by this node")
        self._udp.detach()
        self._closed.set()

    async def _step(self) -> None:
        """Wait for something to do, and do it."""
        timer = self._quic.get_timer()
        with trio.move_on_at(self._next_deadline(timer)):
            await self._udp.wait()
        await (self._udp.turn or self.cpu_share.turn)()
        try:
            self._process(timer)
            await self._transmit()
        except _REFUSALS as error:
            self._fail(f"the protocol failed: {error}")

    def _next_deadline(self, timer: float | None) -> float:
        deadlines = [math.inf if timer is None else timer, self._pinged_s + PING_INTERVAL_S]
        return min(deadlines + [trio.current_time() + _HELD_CHECK_S] * self._quic.held)

    def _process(self, timer: float | None) -> None:
        now = trio.current_time()
        if datagrams := self._udp.take():
            self.last_received_s = now
            self._quic.receive_many_datagrams(datagrams, self._udp.remote, now)
        if timer is not None and now >= timer:
            self._quic.handle_timer(now)
        if now - self._pinged_s >= PING_INTERVAL_S:
            self.ping()
        self._hold_or_go_on(now)
        while event := self._quic.next_event():
            self._on_event(event)
        if self._quic.ended:
            self._fail(end_reason(self._quic.ended, by_this_side=self._quic.ended_by_this_side))

    def _hold_or_go_on(self, now: float) -> None:
        """Take no more data from the protocol while too much is unread. So the peer gets no credit for more."""
        held = self.unread_bytes > MAX_UNREAD_BYTES or self._backlog.pauses(self)
        if held and now - self._last_read_s > STALL_S and self._streams:
            stalled = max(self._streams.values(), key=lambda stream: stream.unread_bytes)
            stalled.reset(f"nobody read it for {STALL_S:g} s, while other streams waited")
        self._quic.hold(held)

    async def _transmit(self) -> None:
        datagrams = [data for data, _ in self._quic.datagrams_to_send(trio.current_time())]
        if datagrams:
            await self._udp.send(datagrams)
        for stream in list(self._streams.values()):
            stream.wake_writer()
        if self._progress:
            self._progress.unpark(count=self._quic.openable)

    def ping(self) -> None:
        """Send a ping, which every peer answers."""
        self._pinged_s = trio.current_time()
        if not self.failure:
            with suppress(*_REFUSALS):
                self._quic.send_ping(0)
            self._udp.wake()

    @property
    def latest_rtt_s(self) -> float | None:
        """The latest measured round trip in seconds; None before the first."""
        return self._quic.latest_rtt_s

    # Streams

    @property
    def open_streams(self) -> AbstractSet[int]:
        """The numbers of the streams that have not ended."""
        return self._streams.keys()

    async def open_stream(self) -> QuicStream:
        """Open a stream, waiting while too many are open. ConnectionLost if the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self.failure and not self._closing and not self._quic.openable:
            await self._progress.park()
        if self.failure or self._closing:
            raise ConnectionLost(self._end_reason())
        return self._add(self._quic.open())

    async def accept_stream(self) -> QuicStream:
        """Return the next stream that the peer opens; ConnectionLost once the connection has ended."""
        await trio.lowlevel.checkpoint()
        while not self._incoming:
            if self.failure:
                raise ConnectionLost(self._end_reason())
            await self._arrivals.park()
        await self.cpu_share.turn()
        return self._incoming.popleft()

    def unsent_bytes(self, stream_id: int) -> int:
        """Return how many bytes of a stream wait to be sent for the first time."""
        return self._quic.get_send_buffer_size(stream_id)

    def send(self, stream: QuicStream, data: Buffer, *, eof: bool) -> None:
        """Queue data of a stream; StreamReset if the peer has just ended the stream or the connection."""
        try:
            self._quic.send_stream_data(stream.id, data, eof)
        except _REFUSALS as error:
            raise StreamReset(f"stream with {self.peer_id}: {error}") from error
        self.sent_bytes += len(data)
        self._udp.wake()

    def abort(self, stream: QuicStream, *, sending: bool, receiving: bool) -> None:
        """Notify the peer that this side sends or reads no more."""
        if self.failure:
            return
        if sending:
            with suppress(*_REFUSALS):
                self._quic.reset_stream(stream.id, _NO_ERROR)
        if receiving:
            with suppress(*_REFUSALS):
                self._quic.stop_stream(stream.id, _NO_ERROR)
        self._udp.wake()

    def on_read(self) -> None:
        """Let the peer send more, if it had to wait."""
        self._last_read_s = trio.current_time()
        if self._quic.held and self.unread_bytes <= MAX_UNREAD_BYTES // 2:
            self._udp.wake()

    def on_end(self, stream: QuicStream) -> None:
        """Forget a stream of which both directions have ended."""
        self._streams.pop(stream.id, None)

    def _add(self, stream_id: int) -> QuicStream:
        stream = self._streams[stream_id] = QuicStream(self, stream_id)
        return stream

    def _find(self, stream_id: int) -> QuicStream | None:
        """Return a stream, which the peer may have opened just now; None if it has ended."""
        if stream_id & 2:
            self._violate("opened a stream of one direction")
        if stream_id in self._streams or stream_id % 2 == (0 if self.is_initiator else 1):
            return self._streams.get(stream_id)
        self._unannounced.update(range(self._next_peer_id, stream_id + 1, 4))
        self._next_peer_id = max(self._next_peer_id, stream_id + 4)
        if stream_id not in self._unannounced:
            return None
        self._unannounced.remove(stream_id)
        stream = self._add(stream_id)
        if len(self._incoming) >= MAX_INCOMING:  # a peer that resets its streams may open many
            _violation_log.warning(self.peer_id, "opens streams faster than this node accepts them; reset one")
            stream.reset("too many streams wait")
            return None
        self._incoming.append(stream)
        self._arrivals.unpark_all()
        return stream

    def _on_event(self, event: events.QuicEvent) -> None:
        match event:
            case events.StreamDataReceived(data=data, end_stream=fin, stream_id=stream_id):
                self.received_bytes += len(data)
                self._backlog.grow(len(data))
                if stream := self._find(stream_id):
                    stream.feed(data, fin=fin)
            case events.StreamReset(stream_id=stream_id):
                if stream := self._find(stream_id):
                    stream.fail("reset by the peer")
            case events.StopSendingReceived(stream_id=stream_id):
                if stream := self._find(stream_id):
                    stream.on_stop()
            case events.ConnectionIdIssued(connection_id=connection_id):
                self._udp.add_id(connection_id)
            case events.ConnectionIdRetired(connection_id=connection_id):
                self._udp.remove_id(connection_id)

    def _violate(self, what: str) -> NoReturn:
        _violation_log.warning(self.peer_id, "violates the protocol: it %s; closing the connection", what)
        self._quic.close(_STREAM_LIMIT_ERROR, reason_phrase=what)
        raise ValueError(f"the peer {what}")

    # The end

    def _fail(self, reason: str) -> None:
        if not self.failure:
            self.failure = reason
            for stream in list(self._streams.values()):
                stream.fail(reason)
            self._arrivals.unpark_all()
            self._progress.unpark_all()

    def _end_reason(self) -> str:
        return f"connection with {self.peer_id}: {self.failure or 'it is closing'}"
