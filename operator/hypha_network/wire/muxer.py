"""What the host needs of a secured connection that carries streams. Yamux over TLS and QUIC implement it."""

from collections.abc import Set as AbstractSet
from typing import Protocol

import trio

from hypha_network.wire.processor import CpuShare
from hypha_network.wire.yamux_frames import Buffer


class MuxedStream(Protocol):
    """A stream on a connection. Its two directions are closed separately."""

    @property
    def id(self) -> int:
        """The number of the stream in its connection."""

    async def receive_some(self, max_bytes: int | None = None) -> Buffer:
        """Return the data that has arrived, up to `max_bytes`, waiting for at least one byte; empty at the end.

        Once all data is returned, raises StreamReset if the stream was reset, ConnectionLost if its connection ended.
        """

    def count_collected(self, size_bytes: int) -> None:
        """Count received bytes as unread, because they wait for the rest of their message."""

    async def send_all(self, data: Buffer) -> None:
        """Send data, waiting until all of it is passed to the connection. StreamReset if the stream was reset.

        Cancelling this resets the stream, so that the peer does not mistake a part of the data for all of it.
        """

    async def send_eof(self) -> None:
        """Close the sending direction. The peer may still send."""

    async def aclose(self) -> None:
        """Close both directions. The peer still receives all sent data; data that arrives from now on is dropped."""

    def reset(self, reason: str = ...) -> None:
        """Reset the stream: drop unsent and unread data, and send the peer a reset."""


class Muxed(Protocol):
    """A connection that carries streams while `start` runs."""

    peer_id: str
    cpu_share: CpuShare
    event_started: trio.Event
    received_bytes: int
    sent_bytes: int
    last_received_s: float
    """When data arrived last, in seconds of trio's clock."""

    @property
    def open_streams(self) -> AbstractSet[int]:
        """The numbers of the streams that have not ended."""

    @property
    def latest_rtt_s(self) -> float | None:
        """The latest measured round trip in seconds; None before the first."""

    async def start(self) -> None:
        """Carry streams until either side ends the connection, then close it."""

    async def open_stream(self) -> MuxedStream:
        """Open a stream, waiting while too many are open. ConnectionLost if the connection has ended."""

    async def accept_stream(self) -> MuxedStream:
        """Return the next stream that the peer opens; ConnectionLost once the connection has ended."""

    def ping(self) -> None:
        """Send a ping, which every peer answers."""

    async def close(self) -> None:
        """Send queued data for a short time, and close."""
