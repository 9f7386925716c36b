"""The disk space that pushes of peers may take: half of the job's storage, shared fairly by the peers.

A push counts from its beginning until the executor has removed its file, so no peer can fill the job's storage.
"""

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

from hypha_bridge.errors import storage_exceeded

_FILE_BYTES: Final = 4096
"""What a push counts beside its bytes, because an empty file costs something too."""
_MAX_WAIT_S: Final = 30.0
"""How long a push waits for space that the executor may free."""
_CHECK_S: Final = 0.1


class PushBudget:
    """Counts the bytes and the number of each peer's pushes. Thread-safe.

    Args:
        max_bytes: for all pushes together.
        max_pushes: that arrive, or wait for the executor.
        peers: how many peers share the budget. A single peer has it for itself, and executors may keep its files.
    """

    def __init__(self, max_bytes: float, max_pushes: int, peers: int) -> None:
        self._max_bytes = max_bytes
        self._max_pushes = max_pushes
        self._peers = peers
        self._bytes: Counter[str] = Counter()
        self._pushes: Counter[str] = Counter()
        self._delivered: list[tuple[str, int, Path]] = []
        self._freed = threading.Condition(threading.RLock())

    @property
    def exhausted(self) -> bool:
        """Whether no push may begin."""
        with self._freed:
            if self._bytes.total() >= self._max_bytes:
                self._release_removed()
            return self._bytes.total() >= self._max_bytes or self._pushes.total() >= self._max_pushes

    def begin(self, peer: str) -> None:
        """Count a push; BridgeError (507) if its peer has too many."""
        with self._freed:
            if not self._fair(self._pushes, peer, 1, self._max_pushes):
                raise storage_exceeded(f"{self._pushes[peer]} pushes of {peer} wait for the executor already")
            self._pushes[peer] += 1
            self._bytes[peer] += _FILE_BYTES

    def grow(self, peer: str, size_bytes: int) -> None:
        """Count bytes of a push; BridgeError (507) if its peer still exceeds its share after half a minute."""
        deadline = time.monotonic() + _MAX_WAIT_S
        with self._freed:
            while not self._has_space(peer, size_bytes):
                if time.monotonic() > deadline:
                    raise storage_exceeded(
                        f"the pushes of {peer} exceed its share of the {self._max_bytes:g} bytes for all pushes, which "
                        "are half of the job's storage. Ask for more storage in the job's resources."
                    )
                self._freed.wait(_CHECK_S)
            self._bytes[peer] += size_bytes

    def deliver(self, peer: str, size_bytes: int, path: Path) -> None:
        """Record that the executor has got a push, which counts until it removes the file."""
        with self._freed:
            if self._peers > 1:
                self._pushes[peer] -= 1
                self._delivered.append((peer, size_bytes, path))
            else:
                self.end(peer, size_bytes)

    def end(self, peer: str, size_bytes: int) -> None:
        """Stop counting a push of this many bytes, whose file was removed before it was delivered."""
        with self._freed:
            self._pushes[peer] -= 1
            self._release(peer, size_bytes)

    def _has_space(self, peer: str, size_bytes: int) -> bool:
        if not self._fair(self._bytes, peer, size_bytes, self._max_bytes):
            self._release_removed()
        return self._fair(self._bytes, peer, size_bytes, self._max_bytes)

    def _release(self, peer: str, size_bytes: int) -> None:
        self._bytes[peer] -= size_bytes + _FILE_BYTES
        self._freed.notify_all()

    def _release_removed(self) -> None:
        kept = []
        for delivered in self._delivered:
            peer, size_bytes, path = delivered
            if os.path.lexists(path):
                kept.append(delivered)
            else:
                self._release(peer, size_bytes)
        self._delivered = kept

    def _fair(self, held: Counter[str], peer: str, wanted: int, limit: float) -> bool:
        """Whether a peer may hold more: up to its equal share, or as much as then stays free for the others."""
        free = limit - held.total() - wanted
        return free >= 0 and held[peer] + wanted <= max(limit / self._peers, free)
