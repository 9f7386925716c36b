"""Bounds the unread bytes of all connections of a node, so that peers cannot fill its memory."""

import time
import weakref
from typing import Protocol

MAX_BACKLOG_BYTES = 64 * 1024 * 1024
SMALL_BYTES = 256 * 1024
"""A connection may always have this many unread bytes."""
_MEASURED_FOR_S = 0.05
"""How long a measurement counts as current."""


class Session(Protocol):
    """A connection that holds data which nobody has read."""

    @property
    def unread_bytes(self) -> int:
        """The number of received bytes that are unread, or that wait for the rest of their message."""


class Backlog:
    """Decides which connections to pause: when the node has too many unread bytes, those above their share.

    No data is lost. A paused peer waits, and the deadline of a stream's reader ends a stream that is not read.
    """

    def __init__(self, limit_bytes: int = MAX_BACKLOG_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._size_bytes = 0
        self._measured_at = float("-inf")

    def add(self, session: Session) -> None:
        """Count the unread bytes of a connection for as long as it exists."""
        self._sessions.add(session)

    def grow(self, size_bytes: int) -> None:
        """Count bytes that arrived, as unread until the next measurement, which is made only above the limit."""
        self._size_bytes += size_bytes

    def pauses(self, session: Session) -> bool:
        """Tell whether to pause reading from a connection."""
        if self._size_bytes <= self._limit_bytes:
            return False
        now = time.monotonic()
        if now - self._measured_at > _MEASURED_FOR_S:
            self._size_bytes = sum(other.unread_bytes for other in self._sessions)
            self._measured_at = now
        share_bytes = max(SMALL_BYTES, self._limit_bytes // max(1, len(self._sessions)))
        return self._size_bytes > self._limit_bytes and session.unread_bytes > share_bytes
