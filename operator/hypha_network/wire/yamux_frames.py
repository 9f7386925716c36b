"""Yamux frames, the limits of a connection, and the state of a stream."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct

HEADER = Struct(">BBHII")  # version, type, flags, stream id, length
HEADER_BYTES = HEADER.size
VERSION = 0
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
NORMAL, PROTOCOL_ERROR = range(2)
"""The codes of a GO_AWAY frame."""

INITIAL_WINDOW = 256 * 1024
"""The specification's initial window: how much each side may send on a new stream before the other grants more."""
MAX_UINT32 = 0xFFFF_FFFF

Buffer = bytes | bytearray | memoryview


class ProtocolError(Exception):
    """The peer violated the protocol, so the connection must end."""


@dataclass(frozen=True)
class Limits:
    """The limits of a connection. Received data takes at most `initial windows + growth_bytes` of memory."""

    max_window_bytes: int = 16 * 1024 * 1024
    """Maximum receive window of a stream."""
    growth_bytes: int = 64 * 1024 * 1024
    """Maximum sum, over all streams of a connection, of the growth of their receive windows."""
    max_inbound_streams: int = 256
    """Maximum number of streams that the peer may have open; more are reset."""
    max_outbound_streams: int = 256
    """Maximum number of streams that this node opens, acknowledged by the peer or not."""
    max_unsent_answers_bytes: int = 16 * 1024
    """Maximum size of unsent answers to pings and refused streams, which grow if the peer does not read."""
    frame_bytes: int = 64 * 1024
    """Data in one frame, after which the next stream has its turn. Rust peers accept at most 1 MiB."""
    batch_bytes: int = 256 * 1024
    """Approximate size of one write."""
    frames_at_once: int = 512
    """Maximum number of received frames to process before other tasks run."""
    busy_s: float = 0.1
    """A receive window grows if the peer uses half of it within this time plus two round trips."""


@dataclass(eq=False)
class StreamState:
    """One stream: its unread and unsent data, and the windows of both directions."""

    stream_id: int
    flags: int
    """SYN or ACK until the next frame of the stream carries it; 0 afterwards."""
    last_update_s: float
    outbound: bool
    received: bytearray = field(default_factory=bytearray)
    collected_bytes: int = 0
    """Bytes that the reader has taken and that wait for the rest of their message. The reader sets this."""
    receive_window: int = INITIAL_WINDOW
    """How many bytes the peer may still send."""
    max_window: int = INITIAL_WINDOW
    """The receive window once all received data is taken."""
    fin_received: bool = False
    abandoned: bool = False
    """No reader will take the data that arrives."""
    unsent: deque[memoryview] = field(default_factory=deque)
    unsent_bytes: int = 0
    sent_bytes: int = 0
    send_window: int = INITIAL_WINDOW
    eof: bool = False
    """No more data will be added to `unsent`."""
    fin_sent: bool = False
    failure: str = ""
    """Why the stream was reset; empty if it was not."""
    scheduled: bool = False
    wake: Callable[[], object] = lambda: None
    """Called when data arrived, data was sent, or the stream ended."""

    @property
    def readable(self) -> bool:
        """Whether there is data to take, or the stream has ended for the reader."""
        return bool(self.received or self.fin_received or self.failure or self.abandoned)
