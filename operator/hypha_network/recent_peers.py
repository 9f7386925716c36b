"""Remembers recent peers, bounded in number and time, because anyone can make any number of keys."""

import time
from collections import OrderedDict


class RecentPeers:
    """The peers that were recorded within a time, at most `limit` of them. At the limit, the oldest is dropped."""

    def __init__(self, keep_s: float, limit: int = 4096) -> None:
        self._keep_s = keep_s
        self._limit = limit
        self._times: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, peer_id: str) -> bool:
        return time.monotonic() - self._times.get(peer_id, float("-inf")) < self._keep_s

    def __len__(self) -> int:
        return len(self._times)

    def add(self, peer_id: str) -> None:
        """Record a peer now."""
        self._times[peer_id] = time.monotonic()
        self._times.move_to_end(peer_id)
        if len(self._times) > self._limit:
            self._times.popitem(last=False)
