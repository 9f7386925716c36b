"""Shares places and rates fairly among parties, so that the heaviest party loses first."""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

import trio

_MAX_PARTIES: Final = 4096
_MIN_IDLE_S: Final = 10.0
"""A party that is silent for this long, and long enough to fill its bucket, no longer counts as active."""


class FairPlaces:
    """A limited number of places. At the limit, the party with the most places loses the oldest of them.

    A party is named from the outermost group to the single holder, for example a scheduler and one of its peers. The
    heaviest group loses, and within it the heaviest member. A party at its own limit loses its oldest place, too.
    """

    def __init__(self, limit: int, limit_per_party: float = inf) -> None:
        self._limit = limit
        self._limit_per_party = limit_per_party
        self._held: dict[trio.CancelScope, tuple[str, ...]] = {}

    def held_by(self, *party: str) -> int:
        """Return how many places a party holds."""
        return sum(holder == party for holder in self._held.values())

    @contextmanager
    def hold(self, *party: str) -> Iterator[trio.CancelScope]:
        """Hold a place while inside. Whoever loses its place is cancelled inside, and goes on after the block."""
        with trio.CancelScope() as place:
            self._held[place] = party
            if self.held_by(*party) > self._limit_per_party:
                self._release_oldest(party)
            elif len(self._held) > self._limit:
                self.make_room()
            try:
                yield place
            finally:
                self.free(place)

    def move(self, place: trio.CancelScope, *party: str) -> None:
        """Let another party hold a place from now on, unless it has been lost."""
        if place in self._held:
            self._held[place] = party

    def free(self, place: trio.CancelScope) -> None:
        """Free a place, whose holder goes on without one. No-op if it is lost or free."""
        self._held.pop(place, None)

    def make_room(self) -> None:
        """Take the oldest place from the heaviest party, if any place is held."""
        group: tuple[str, ...] = ()
        while heavier := Counter(
            party[: len(group) + 1]
            for party in self._held.values()
            if len(party) > len(group) and party[: len(group)] == group
        ):
            group = max(heavier, key=heavier.__getitem__)  # among equals, the one whose oldest place is oldest
        if group:
            self._release_oldest(group)

    def _release_oldest(self, party: tuple[str, ...]) -> None:
        oldest = next(place for place, holder in self._held.items() if holder == party)
        del self._held[oldest]
        oldest.cancel()


class FairRate:
    """A token bucket for each party. When many parties are active, they share a total rate equally.

    Times are monotonic seconds.

    Args:
        per_s: how many tokens a bucket gains in a second at most.
        burst: how many tokens it holds at most.
        total_per_s: how many tokens the buckets of all active parties gain together in a second at most.
    """

    def __init__(self, per_s: float, burst: float, total_per_s: float = inf) -> None:
        self._per_s = per_s
        self._burst = burst
        self._total_per_s = total_per_s
        self._idle_s = max(_MIN_IDLE_S, burst / per_s)
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Tokens, and the time when they were counted. The party that is silent for longest comes first."""

    def take(self, party: Hashable, now: float) -> bool:
        """Take a token. False if there is none."""
        level = self._level(party, now)
        self._set(party, level - 1 if level >= 1 else level, now)
        return level >= 1

    def take_later(self, party: Hashable, now: float) -> float:
        """Take a token that may not have come yet. Return the seconds until it comes."""
        level = self._level(party, now) - 1
        self._set(party, level, now)
        return max(0.0, -level / self._rate(party))

    def give_back(self, party: Hashable, now: float) -> None:
        """Return a token."""
        self._set(party, min(self._depth(party), self._level(party, now) + 1), now)

    def _rate(self, party: Hashable) -> float:
        active = len(self._buckets) + (party not in self._buckets)
        return min(self._per_s, self._total_per_s / active)

    def _depth(self, party: Hashable) -> float:
        return max(1.0, min(self._burst, self._rate(party) * self._idle_s))

    def _level(self, party: Hashable, now: float) -> float:
        level, then = self._buckets.get(party, (inf, now))
        return min(self._depth(party), level + (now - then) * self._rate(party))

    def _set(self, party: Hashable, level: float, now: float) -> None:
        self._buckets[party] = level, now
        self._buckets.move_to_end(party)
        while len(self._buckets) > _MAX_PARTIES or next(iter(self._buckets.values()))[1] < now - self._idle_s:
            self._buckets.popitem(last=False)
