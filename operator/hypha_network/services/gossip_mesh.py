"""The mesh of gossipsub: per topic, the peers that exchange complete messages with this node. Sends nothing itself."""

import random
from collections.abc import Iterable

D_LOW, D, D_HIGH = 5, 6, 12
"""The gossipsub specification's bounds on a topic's mesh: fill it below D_LOW, trim it above D_HIGH, to D each time."""
PRUNE_BACKOFF_S = 60.0
MIN_BACKOFF_S = 1.0
MAX_BACKOFF_S = 10 * PRUNE_BACKOFF_S


class Mesh:
    """The mesh members of each topic that this node subscribes to. `now` is in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._members: dict[str, set[str]] = {}
        self._backoff_until: dict[tuple[str, str], float] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._members

    def join(self, topic: str) -> None:
        """Begin an empty mesh for a topic."""
        self._members[topic] = set()

    def leave(self, topic: str) -> set[str]:
        """End a topic's mesh; return its members."""
        return self._members.pop(topic)

    def members(self, topic: str) -> set[str]:
        """Return the members of a topic's mesh."""
        return self._members[topic]

    def graft(self, peer_id: str, topic: str, now: float) -> bool:
        """Add a peer that sent a graft; False if the mesh is full, or the backoff of the peer has not passed."""
        members = self._members[topic]
        if peer_id not in members and (len(members) >= D_HIGH or self._in_backoff(peer_id, topic, now)):
            return False
        members.add(peer_id)
        return True

    def prune(self, peer_id: str, topic: str, now: float, backoff_s: float = PRUNE_BACKOFF_S) -> None:
        """Remove a peer, and refuse it for `backoff_s`, within the bounds above."""
        if topic in self._members:
            self._members[topic].discard(peer_id)
            self._backoff_until[topic, peer_id] = now + min(max(backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)

    def remove(self, peer_id: str, topic: str) -> None:
        """Remove a peer that no longer subscribes to a topic."""
        if topic in self._members:
            self._members[topic].discard(peer_id)

    def remove_peer(self, peer_id: str) -> None:
        """Remove a peer from all topics."""
        for members in self._members.values():
            members.discard(peer_id)

    def fill(self, topic: str, subscribers: Iterable[str], now: float) -> list[str]:
        """Add subscribers of a topic to a mesh that is too small; return them. The caller sends each a graft."""
        members = self._members[topic]
        if len(members) >= D_LOW:
            return []
        candidates = [
            peer_id for peer_id in subscribers if peer_id not in members and not self._in_backoff(peer_id, topic, now)
        ]
        added = random.sample(candidates, min(D - len(members), len(candidates)))
        members.update(added)
        return added

    def trim(self, topic: str, now: float) -> list[str]:
        """Prune members of a mesh that is too large; return them. The caller sends each a prune."""
        members = self._members[topic]
        if len(members) <= D_HIGH:
            return []
        excess = random.sample(sorted(members), len(members) - D)
        for peer_id in excess:
            self.prune(peer_id, topic, now)
        return excess

    def expire_backoffs(self, now: float) -> None:
        """Drop the backoffs that have passed."""
        self._backoff_until = {key: until for key, until in self._backoff_until.items() if until > now}

    def _in_backoff(self, peer_id: str, topic: str, now: float) -> bool:
        return self._backoff_until.get((topic, peer_id), 0.0) > now
