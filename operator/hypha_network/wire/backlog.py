"""What arrived and nobody took yet, on all connections of a node together: bounded, so that peers cannot fill it."""

import time
import weakref

from hypha_network.wire.yamux_session import YamuxSession

MAX_BACKLOG_BYTES = 64 * 1024 * 1024
SMALL_BYTES = 256 * 1024
"""What a connection may always have."""
_MEASURED_FOR_S = 0.05


class Backlog:
    """Says which connections should not be read for a moment: once there is too much, those with more than their share.

    Nothing is lost: a peer that is not read waits, and what has a deadline on a stream that nobody reads ends.
    """

    def __init__(self, limit_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._sessions: weakref.WeakSet[YamuxSession] = weakref.WeakSet()
        self._size_bytes = 0
        self._measured_at = float("-inf")

    def add(self, session: YamuxSession) -> None:
        """A connection that counts, as long as it is used."""
        self._sessions.add(session)

    def grow(self, size_bytes: int) -> None:
        """So much arrived; whether it is taken at once shows in the next measurement, made when it might matter."""
        self._size_bytes += size_bytes

    def excludes(self, session: YamuxSession) -> bool:
        """Whether a connection should not be read now."""
        if self._size_bytes <= self._limit_bytes:
            return False
        now = time.monotonic()
        if now - self._measured_at > _MEASURED_FOR_S:
            self._size_bytes = sum(other.unread_bytes for other in self._sessions)
            self._measured_at = now
        share_bytes = max(SMALL_BYTES, self._limit_bytes // max(1, len(self._sessions)))
        return self._size_bytes > self._limit_bytes and session.unread_bytes > share_bytes
