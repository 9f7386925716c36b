"""The yamux protocol without input or output: received bytes go in, bytes to send come out.

A connection is a `YamuxSession`, and a stream on it is a `StreamState`. `hypha_network.wire.yamux` runs the tasks.
"""

from collections import deque
from collections.abc import Callable

from hypha_network.wire.yamux_frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW,
    MAX_UINT32,
    PING,
    RST,
    SYN,
    VERSION,
    WINDOW_UPDATE,
    Buffer,
    Limits,
    ProtocolError,
    StreamState,
)


class YamuxSession:
    """One side of a connection."""

    def __init__(self, *, is_initiator: bool, clock: Callable[[], float], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.streams: dict[int, StreamState] = {}
        self.incoming: deque[StreamState] = deque()
        """Streams that the peer opened, which `accept` has not returned yet."""
        self.failure = ""
        """Why the connection ended; empty if it has not."""
        self.peer_go_away: int | None = None
        """The code of the peer's GO_AWAY frame, once it has sent one."""
        self.rtt_s: float | None = None
        """The shortest measured round trip."""
        self.latest_rtt_s: float | None = None
        self.refused_streams = 0
        """How many streams of the peer were reset, because it has too many or the connection is closing."""
        self._clock = clock
        self._parity = 1 if is_initiator else 0
        self._next_id = 1 if is_initiator else 2
        self._grown_bytes = 0
        self._inbound = 0  # open streams of the peer
        self._header = bytearray()
        self._body_bytes = 0
        self._body_stream: StreamState | None = None
        self._body_fin = False
        self._answers = bytearray()
        self._go_away: bytes | None = None
        self._ready: deque[StreamState] = deque()
        self._touched: set[StreamState] = set()
        self._ping: tuple[int, float] | None = None
        self._nonce = 0

    @property
    def can_open(self) -> bool:
        """Whether `open` may be called now. A stream that ends allows another one."""
        return sum(stream.outbound for stream in self.streams.values()) < self.limits.max_outbound_streams

    @property
    def unread_bytes(self) -> int:
        """The number of received bytes that are unread, or that wait for the rest of their message."""
        return sum(len(stream.received) + stream.collected_bytes for stream in self.streams.values())

    @property
    def closing(self) -> bool:
        """Whether no more streams can be opened, because either side is ending the connection."""
        return bool(self.failure) or self._go_away is not None or self.peer_go_away is not None

    def open(self) -> StreamState:
        """Open a stream. Its first frame announces it to the peer."""
        stream = self._add(self._next_id, SYN, outbound=True)
        self._next_id += 2
        self._schedule(stream)
        return stream

    def accept(self) -> StreamState:
        """Return the oldest stream of `incoming`, and acknowledge it."""
        stream = self.incoming.popleft()
        if not stream.failure:
            self._schedule(stream)
        return stream

    def take(self, stream: StreamState, max_bytes: int | None = None) -> bytearray | None:
        """Return the data that arrived, and grant the peer as much again; None if there is no data."""
        data = stream.received
        if not data:
            return None
        if max_bytes is None or max_bytes >= len(data):
            stream.received = bytearray()
        else:
            data = data[:max_bytes]
            del stream.received[:max_bytes]
        if self._credit(stream):
            self._schedule(stream)
        return data

    def send(self, stream: StreamState, data: memoryview) -> int:
        """Queue data, which must not change until it is sent. Return the value of `sent_bytes` once it is sent."""
        stream.unsent.append(data)
        stream.unsent_bytes += len(data)
        self._schedule(stream)
        return stream.sent_bytes + stream.unsent_bytes

    def send_eof(self, stream: StreamState) -> None:
        """Close the sending direction after all queued data."""
        stream.eof = True
        self._schedule(stream)

    def abandon(self, stream: StreamState) -> None:
        """Drop received data and data yet to come. If the peer sends much more, reset the stream."""
        stream.abandoned = True
        stream.received = bytearray()
        self._touched.add(stream)
        self._reset_if_unwanted(stream)
        self._wake_touched()

    def reset(self, stream: StreamState, reason: str) -> None:
        """Reset a stream: drop its queued and received data, and notify the peer."""
        if stream.failure:
            return
        closed = stream.fin_sent and stream.fin_received
        known = not stream.flags & SYN
        self._end(stream, reason)
        stream.received = bytearray()
        if known and not closed:
            self._answers += HEADER.pack(VERSION, WINDOW_UPDATE, RST, stream.stream_id, 0)
        self._wake_touched()

    def ping(self) -> None:
        """Send a ping, which measures the round trip, unless one is unanswered."""
        if self._ping is None:
            self._nonce = (self._nonce + 1) & MAX_UINT32
            self._ping = self._nonce, self._clock()
            self._answers += HEADER.pack(VERSION, PING, SYN, 0, self._nonce)

    def close(self, code: int) -> None:
        """Send a GO_AWAY frame after all data that can be sent now."""
        if self._go_away is None:
            self._go_away = HEADER.pack(VERSION, GO_AWAY, 0, 0, code)

    def fail(self, reason: str) -> None:
        """End the connection. Its streams return the data that arrived, and then end too."""
        if not self.failure:
            self.failure = reason
            for stream in list(self.streams.values()):
                self._end(stream, reason)
            self._wake_touched()

    @property
    def has_output(self) -> bool:
        """Whether `take_output` may return data."""
        return bool(self._answers or self._ready or self._go_away)

    def take_output(self) -> bytes:
        """Return the bytes to send next: answers, then one frame of each stream in turn. Empty if there are none."""
        parts: list[Buffer] = [self._answers]
        size = len(self._answers)
        self._answers = bytearray()
        while self._ready and size < self.limits.batch_bytes:
            stream = self._ready.popleft()
            stream.scheduled = False
            if not stream.failure:
                size += self._turn(stream, parts)
        if not size and self._go_away:
            parts, self._go_away = [self._go_away], b""
        self._wake_touched()
        return b"".join(parts)

    def _turn(self, stream: StreamState, parts: list[Buffer]) -> int:
        credit = self._grant(stream)
        data = self._next_data(stream)
        flags = FIN if stream.eof and not stream.unsent and not stream.fin_sent else 0
        size = len(data)
        if credit or (stream.flags and not data and not flags):
            parts.append(HEADER.pack(VERSION, WINDOW_UPDATE, stream.flags, stream.stream_id, credit))
            stream.flags = 0
            size += HEADER_BYTES
        if data or flags:
            parts.append(HEADER.pack(VERSION, DATA, stream.flags | flags, stream.stream_id, len(data)))
            parts.append(data)
            stream.flags = 0
            size += HEADER_BYTES
        if flags:
            stream.fin_sent = True
            self._drop_if_closed(stream)
            self._reset_if_unwanted(stream)
        if stream.unsent and stream.send_window:
            self._schedule(stream)
        return size

    def _next_data(self, stream: StreamState) -> memoryview:
        if not stream.unsent:
            return memoryview(b"")
        piece = stream.unsent.popleft()
        size = min(len(piece), stream.send_window, self.limits.frame_bytes)
        if size < len(piece):
            stream.unsent.appendleft(piece[size:])
        else:
            self._touched.add(stream)
        stream.send_window -= size
        stream.unsent_bytes -= size
        stream.sent_bytes += size
        return piece[:size]

    def _credit(self, stream: StreamState) -> int:
        """Return how many bytes to grant on a stream, or 0 if they are too few to justify a frame."""
        if stream.fin_received or stream.abandoned or stream.failure:
            return 0
        credit = stream.max_window - stream.receive_window - len(stream.received)
        return credit if credit >= stream.max_window // 2 else 0

    def _grant(self, stream: StreamState) -> int:
        credit = self._credit(stream)
        if credit:
            now = self._clock()
            if now - stream.last_update_s < self.limits.busy_s + 2 * (self.rtt_s or 0):
                credit += self._grow(stream)
            stream.last_update_s = now
            stream.receive_window += credit
        return credit

    def _grow(self, stream: StreamState) -> int:
        limits = self.limits
        remaining = min(limits.max_window_bytes - stream.max_window, limits.growth_bytes - self._grown_bytes)
        growth = min(stream.max_window, max(remaining, 0))
        stream.max_window += growth
        self._grown_bytes += growth
        return growth

    def receive(self, data: Buffer) -> int:
        """Process received bytes; ProtocolError if they violate the protocol.

        Returns how many bytes were processed, which is all unless they hold very many frames.
        """
        try:
            return self._parse(memoryview(data))
        finally:
            self._wake_touched()

    def _parse(self, view: memoryview) -> int:
        position, end = 0, len(view)
        frames = 0
        while position < end and frames < self.limits.frames_at_once:
            if self._body_bytes:
                size = min(self._body_bytes, end - position)
                self._on_body(view[position : position + size])
                position += size
            elif self._header or end - position < HEADER_BYTES:  # a header split between two reads
                size = min(HEADER_BYTES - len(self._header), end - position)
                self._header += view[position : position + size]
                position += size
                if len(self._header) == HEADER_BYTES:
                    header = HEADER.unpack(self._header)
                    self._header.clear()
                    self._on_header(*header)
                    frames += 1
            else:
                self._on_header(*HEADER.unpack_from(view, position))
                position += HEADER_BYTES
                frames += 1
        return position

    def _on_body(self, data: memoryview) -> None:
        self._body_bytes -= len(data)
        stream = self._body_stream
        if stream is None or stream.failure:
            return
        self._touched.add(stream)
        if not stream.abandoned:
            stream.received += data
        if self._body_fin and not self._body_bytes:
            self._on_fin(stream)

    def _on_header(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != VERSION:
            raise ProtocolError(f"a frame of version {version}")
        if flags > SYN | ACK | FIN | RST:
            raise ProtocolError(f"a frame with flags {flags:#06x}")
        if kind == DATA:
            self._on_data(flags, stream_id, length)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(flags, stream_id, length)
        elif kind == PING:
            self._on_ping(flags, length)
        elif kind == GO_AWAY:
            self.peer_go_away = length
        else:
            raise ProtocolError(f"a frame of type {kind}")

    def _on_data(self, flags: int, stream_id: int, length: int) -> None:
        stream = self._find(flags, stream_id) if flags else self.streams.get(stream_id) or self._find(0, stream_id)
        self._body_bytes, self._body_stream, self._body_fin = length, stream, bool(flags & FIN)
        if stream is None:
            if length > self.limits.max_window_bytes:
                raise ProtocolError(f"{length} bytes of data on stream {stream_id}, which is closed")
            return
        if length > stream.receive_window:
            raise ProtocolError(f"{length} bytes on stream {stream_id} with a window of {stream.receive_window}")
        if length and stream.fin_received:
            raise ProtocolError(f"data on stream {stream_id} after its end")
        stream.receive_window -= length
        if flags & FIN and not length:
            self._on_fin(stream)
        else:
            self._reset_if_unwanted(stream)

    def _on_window_update(self, flags: int, stream_id: int, credit: int) -> None:
        stream = self._find(flags, stream_id)
        if stream is None:
            return
        stream.send_window += credit
        if stream.send_window > MAX_UINT32:
            raise ProtocolError(f"a window of {stream.send_window} bytes on stream {stream_id}")
        if stream.unsent and credit:
            self._schedule(stream)
        if flags & FIN:
            self._on_fin(stream)

    def _find(self, flags: int, stream_id: int) -> StreamState | None:
        """Apply the flags RST and SYN of a frame. Return its stream, or None if that stream has ended."""
        stream = self.streams.get(stream_id)
        if flags & RST:
            if stream is not None:
                self._end(stream, "reset by the peer")
            return None
        if flags & SYN:
            return self._on_syn(stream_id)
        never_opened = stream_id == 0 or (stream_id & 1 == self._parity and stream_id >= self._next_id)
        if stream is None and never_opened:
            raise ProtocolError(f"a frame for stream {stream_id}, which was never opened")
        return stream

    def _on_syn(self, stream_id: int) -> StreamState | None:
        if stream_id == 0 or stream_id & 1 == self._parity:
            raise ProtocolError(f"stream id {stream_id} is not the peer's to open")
        if stream_id in self.streams:
            raise ProtocolError(f"stream {stream_id} is open already")
        if self.closing or max(self._inbound, len(self.incoming)) >= self.limits.max_inbound_streams:
            self.refused_streams += 1
            self._answer(WINDOW_UPDATE, RST, stream_id, 0)
            return None
        stream = self._add(stream_id, ACK, outbound=False)
        self.incoming.append(stream)
        return stream

    def _on_fin(self, stream: StreamState) -> None:
        stream.fin_received = True
        self._touched.add(stream)
        self._drop_if_closed(stream)

    def _on_ping(self, flags: int, nonce: int) -> None:
        if not flags & ACK:
            self._answer(PING, ACK, 0, nonce)
        elif self._ping and self._ping[0] == nonce:
            rtt_s = self._clock() - self._ping[1]
            self.latest_rtt_s = rtt_s
            self.rtt_s = rtt_s if self.rtt_s is None else min(rtt_s, self.rtt_s)
            self._ping = None

    def _answer(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if len(self._answers) >= self.limits.max_unsent_answers_bytes:
            raise ProtocolError("the peer sends pings or opens streams, and does not read the answers")
        self._answers += HEADER.pack(VERSION, kind, flags, stream_id, length)

    def _add(self, stream_id: int, flags: int, *, outbound: bool) -> StreamState:
        stream = StreamState(stream_id, flags, self._clock(), outbound)
        self.streams[stream_id] = stream
        self._inbound += not outbound
        return stream

    def _schedule(self, stream: StreamState) -> None:
        if not stream.scheduled:
            stream.scheduled = True
            self._ready.append(stream)

    def _drop_if_closed(self, stream: StreamState) -> None:
        if stream.fin_sent and stream.fin_received:
            self._remove(stream)

    def _reset_if_unwanted(self, stream: StreamState) -> None:
        """Reset a closed stream on which the peer still sends, because this node will not grant it more credit."""
        unwanted = stream.abandoned and stream.fin_sent and not stream.fin_received
        if unwanted and stream.receive_window < stream.max_window // 2:
            self.reset(stream, "closed by this node")

    def _end(self, stream: StreamState, reason: str) -> None:
        stream.failure = reason
        stream.unsent.clear()
        stream.unsent_bytes = 0
        self._touched.add(stream)
        self._remove(stream)

    def _remove(self, stream: StreamState) -> None:
        if self.streams.pop(stream.stream_id, None) is not None:
            self._grown_bytes -= stream.max_window - INITIAL_WINDOW
            self._inbound -= not stream.outbound

    def _wake_touched(self) -> None:
        touched, self._touched = self._touched, set()
        for stream in touched:
            stream.wake()
