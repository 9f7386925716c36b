"""One iterative search of Kademlia: which peers to ask next about a key. Pure; asks nobody itself."""

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from heapq import heappop, heappush
from typing import Final

from hypha_messages.types import peer_id_to_bytes
from hypha_network.wire.addresses import Address

K: Final = 20
"""The number of closest peers that a lookup asks and that store a record."""
MAX_ASKED: Final = 3 * K
"""Maximum number of queries of a lookup. Peers that do not answer do not count towards K."""
MAX_ADDRESSES_PER_PEER: Final = 32


def key_of(data: bytes) -> int:
    """Return the place of a record's key or of an encoded peer id in the space of keys."""
    return int.from_bytes(sha256(data).digest(), "big")


@lru_cache(maxsize=4096)
def peer_key(peer_id: str) -> int:
    """Return the place of a peer in the space of keys. It is kept, because lookups compare many peers."""
    return key_of(peer_id_to_bytes(peer_id))


class Lookup:
    """A search for the peers closest to a key.

    Args:
        target: the key's place in the space of keys.
        leave_out: peers that are never asked.
        failed: peers that did not answer lately, and the addresses at which they were tried. They are asked only if
            other addresses become known.
        first: peers to ask before others, however far they are from the key.
    """

    def __init__(
        self,
        target: int,
        leave_out: Collection[str] = (),
        failed: Mapping[str, Collection[Address]] | None = None,
        first: Iterable[str] = (),
    ) -> None:
        self.addresses: dict[str, tuple[Address, ...]] = {}
        """By peer, its addresses in all answers."""
        self._target = target
        self._leave_out = leave_out
        self._failed = dict(failed or {})
        self._first = [peer_id for peer_id in first if peer_id not in leave_out]
        self._known = set(self._first)
        """The peers that wait, are being asked, or have answered."""
        self._waiting: list[tuple[int, str]] = []
        """A heap, with the closest peer first."""
        self._running: set[int] = set()
        self._answered: list[tuple[int, str]] = []
        """The closest first."""
        self._asked = 0

    @property
    def running(self) -> bool:
        """Whether queries are under way."""
        return bool(self._running)

    @property
    def answered(self) -> list[str]:
        """The peers that answered, the closest first."""
        return [peer_id for _, peer_id in self._answered]

    def add(self, peer_id: str, addresses: Iterable[Address]) -> None:
        """Record a peer and addresses of it. They add to those that are known, because some of them may be false."""
        if peer_id in self._leave_out:
            return
        merged = dict.fromkeys((*self.addresses.get(peer_id, ()), *addresses))
        self.addresses[peer_id] = tuple(merged)[:MAX_ADDRESSES_PER_PEER]
        if peer_id in self._failed:
            if set(self.addresses[peer_id]).issubset(self._failed[peer_id]):
                return
            del self._failed[peer_id]
        elif peer_id in self._known:
            return
        self._known.add(peer_id)
        heappush(self._waiting, (self._distance(peer_id), peer_id))

    def next(self) -> str | None:
        """Return the peer to ask now, or None if there is none at this moment. Report its answer or its failure."""
        if self._asked >= MAX_ASKED:
            return None
        if self._first:
            return self._begin(self._first.pop(0))
        if not self._waiting:
            return None
        closest = self._waiting[0][0]
        closer = bisect_left(self._answered, (closest, "")) + sum(distance < closest for distance in self._running)
        return self._begin(heappop(self._waiting)[1]) if closer < K else None

    def _begin(self, peer_id: str) -> str:
        self._asked += 1
        self._running.add(self._distance(peer_id))
        return peer_id

    def on_answer(self, peer_id: str) -> None:
        """Record that a peer has answered."""
        self._running.remove(self._distance(peer_id))
        insort(self._answered, (self._distance(peer_id), peer_id))

    def on_failure(self, peer_id: str, tried: Collection[Address] | None) -> None:
        """Record that a peer has not answered at these addresses, or with None that it refuses queries."""
        self._running.remove(self._distance(peer_id))
        if tried is not None:
            self._failed[peer_id] = tried
            self.add(peer_id, ())  # another answer may have named further addresses meanwhile

    def _distance(self, peer_id: str) -> int:
        return peer_key(peer_id) ^ self._target
