"""Counts by peer, of which only a bounded number are named. Pure."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, Generic, Literal, TypeVar

MAX_NAMED: Final = 20
"""How many peers have counts of their own."""
OTHERS: Final = "other"
"""The name of all other peers."""
_MAX_UNNAMED: Final = 1024
"""For how many other peers their bytes are remembered."""
_OVERTAKES: Final = 2
"""A peer takes the place of the least named one once it has moved this many times its bytes. So names seldom change."""

Direction = Literal["inbound", "outbound"]
_Kind = TypeVar("_Kind")


class PeerCounts(Generic[_Kind]):
    """Counts of several kinds, each by peer. The peers that moved most bytes are named.

    `add` adds each amount to exactly one count. A peer that is no longer named loses its counts. If it is named again,
    they start at zero. Other threads may call `of` and `all`.
    """

    def __init__(self) -> None:
        self._named: dict[str, int] = {}
        self._unnamed: OrderedDict[str, int] = OrderedDict()
        self._counts: dict[_Kind, dict[str, int]] = {}

    @property
    def named(self) -> frozenset[str]:
        """The named peers."""
        return frozenset(self._named)

    def of(self, kind: _Kind) -> dict[str, int]:
        """Return the counts of a kind by name."""
        return self._counts.get(kind, {})

    def all(self) -> list[tuple[_Kind, str, int]]:
        """Return every kind, name and count."""
        return [(kind, name, count) for kind, counts in list(self._counts.items()) for name, count in counts.items()]

    def add(self, peer: str, size_bytes: int, amounts: Mapping[_Kind, int]) -> None:
        """Record that a peer moved bytes, and add amounts to its counts."""
        name = self._name(peer, size_bytes)
        for kind, amount in amounts.items():
            counts = self.of(kind)
            self._counts[kind] = {**counts, name: counts.get(name, 0) + amount}

    def _name(self, peer: str, size_bytes: int) -> str:
        if peer in self._named or len(self._named) < MAX_NAMED:
            self._named[peer] = self._named.get(peer, 0) + size_bytes
            return peer
        total = self._unnamed.pop(peer, 0) + size_bytes
        least = min(self._named, key=self._named.__getitem__)
        if total > _OVERTAKES * self._named[least]:
            self._remember(least, self._named.pop(least))
            self._counts = {
                kind: {name: count for name, count in counts.items() if name != least}
                for kind, counts in self._counts.items()
            }
            self._named[peer] = total
            return peer
        self._remember(peer, total)
        return OTHERS

    def _remember(self, peer: str, total: int) -> None:
        self._unnamed[peer] = total
        if len(self._unnamed) > _MAX_UNNAMED:
            self._unnamed.popitem(last=False)
