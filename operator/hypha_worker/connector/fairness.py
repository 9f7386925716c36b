"""Shares places and rates fairly among parties, so that the heaviest party loses first. Pure: callers give the time."""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

_MAX_PARTIES: Final = 4096

Place = TypeVar("Place", bound=Hashable)
Party = tuple[str, ...]
"""Who holds a place, from the outermost group to the single holder, for example a scheduler and one of its peers."""


class FairPlaces(Generic[Place]):
    """A limited number of places. At the limit, the party with the most places loses the oldest of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Place, Party] = {}

    def __len__(self) -> int:
        return len(self._held)

    def held_by(self, party: Party) -> int:
        """Return how many places a party holds."""
        return sum(holder == party for holder in self._held.values())

    def add(self, place: Place, party: Party) -> Place | None:
        """Take a place. Return the place that is lost for it, if one is."""
        self._held[place] = party
        if len(self._held) <= self._limit:
            return None
        lost = self._oldest_of_heaviest()
        del self._held[lost]
        return lost

    def move(self, place: Place, party: Party) -> None:
        """Let another party hold a place from now on, unless it has been lost."""
        if place in self._held:
            self._held[place] = party

    def remove(self, place: Place) -> None:
        """Free a place. No-op if it is lost or free."""
        self._held.pop(place, None)

    def _oldest_of_heaviest(self) -> Place:
        heaviest = dict(self._held)
        for level in range(max(map(len, heaviest.values()))):
            counts = Counter(party[: level + 1] for party in heaviest.values())
            group = max(counts, key=counts.__getitem__)  # among equals, the one whose oldest place is oldest
            heaviest = {place: party for place, party in heaviest.items() if party[: level + 1] == group}
        return next(iter(heaviest))


class FairRate:
    """A token bucket for each party. Times are monotonic seconds.

    Args:
        per_s: how many tokens a bucket gains in a second.
        burst: how many tokens it holds at most.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, party: Hashable, now: float) -> bool:
        """Take a token. False if there is none."""
        if self._level(party, now) < 1:
            return False
        self.take_later(party, now)
        return True

    def take_later(self, party: Hashable, now: float) -> float:
        """Take a token that may not have come yet. Return the seconds until it comes."""
        level = self._level(party, now) - 1
        self._set(party, level, now)
        return max(0.0, -level / self._per_s)

    def give_back(self, party: Hashable, now: float) -> None:
        """Return a token."""
        self._set(party, min(self._burst, self._level(party, now) + 1), now)

    def _level(self, party: Hashable, now: float) -> float:
        level, then = self._buckets.get(party, (self._burst, now))
        return min(self._burst, level + (now - then) * self._per_s)

    def _set(self, party: Hashable, level: float, now: float) -> None:
        self._buckets[party] = level, now
        self._buckets.move_to_end(party)
        if len(self._buckets) > _MAX_PARTIES:
            self._buckets.popitem(last=False)
