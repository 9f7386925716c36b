"""Yamux frames, and what a connection keeps of a stream."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct

HEADER = Struct(">BBHII")  # version, type, flags, stream id, length
HEADER_BYTES = HEADER.size
VERSION = 0
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
NORMAL, PROTOCOL_ERROR, INTERNAL_ERROR = range(3)
"""What a GO_AWAY says."""

INITIAL_WINDOW = 256 * 1024
"""What each side may send on a new stream before it hears of the other; fixed by the specification."""
MAX_UINT32 = 0xFFFF_FFFF

Buffer = bytes | bytearray | memoryview


class ProtocolError(Exception):
    """The peer broke the protocol; the connection cannot go on."""


@dataclass(frozen=True)
class Limits:
    """What a connection may cost. Memory for data received is bounded by `initial windows + growth_bytes`."""

    max_window_bytes: int = 16 * 1024 * 1024
    """How far the receive window of a stream may grow."""
    growth_bytes: int = 64 * 1024 * 1024
    """How far all receive windows of a connection together may grow beyond the initial ones."""
    max_inbound_streams: int = 256
    """How many streams the peer may have open; more are reset."""
    max_outbound_streams: int = 256
    """How many streams this node has open; as many may await the peer's acknowledgement, so none is counted."""
    max_unsent_answers_bytes: int = 16 * 1024
    """How many bytes of answers to pings and to refused streams may wait until the peer reads them."""
    frame_bytes: int = 64 * 1024
    """Data in one frame, and what a stream sends before the next one's turn. Rust peers take at most 1 MiB."""
    batch_bytes: int = 256 * 1024
    """Roughly what is sent in one write."""
    busy_s: float = 0.1
    """A window half used up within this time, and two round trips, is too small."""


@dataclass(eq=False)
class StreamState:
    """One stream: what arrived and was not yet taken, what is to be sent, and the windows of both directions."""

    stream_id: int
    flags: int
    """SYN or ACK: to go out with the next frame."""
    last_update_s: float
    outbound: bool
    received: bytearray = field(default_factory=bytearray)
    collected_bytes: int = 0
    """What was taken and waits for the rest of its message; whoever took it says so."""
    receive_window: int = INITIAL_WINDOW
    """What the peer may still send."""
    max_window: int = INITIAL_WINDOW
    """The receive window when all that arrived was taken."""
    fin_received: bool = False
    abandoned: bool = False
    """Nobody will take what arrives."""
    unsent: deque[memoryview] = field(default_factory=deque)
    unsent_bytes: int = 0
    sent_bytes: int = 0
    send_window: int = INITIAL_WINDOW
    eof: bool = False
    """Nothing will be added to `unsent`."""
    fin_sent: bool = False
    failure: str = ""
    """Why the stream was broken off, if it was."""
    scheduled: bool = False
    wake: Callable[[], object] = lambda: None
    """Called when there is something to take, something was sent, or the stream ended."""

    @property
    def readable(self) -> bool:
        """Whether `take` has an answer."""
        return bool(self.received or self.fin_received or self.failure or self.abandoned)
