"""A bounded number of slots, in which no party can keep out the others."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Slots:
    """At the limit, the party that holds most slots loses its oldest. A party at its own limit loses its oldest too."""

    def __init__(self, limit: int, limit_per_party: int) -> None:
        self._limit = limit
        self._limit_per_party = limit_per_party
        self._held: dict[trio.CancelScope, str] = {}

    def count(self, party: str) -> int:
        """Return how many slots a party holds."""
        return list(self._held.values()).count(party)

    @contextmanager
    def hold(self, party: str) -> Iterator[None]:
        """Hold a slot while inside. Whoever loses its slot is cancelled inside, and goes on after the block."""
        if self.count(party) >= self._limit_per_party:
            self._release_oldest(party)
        elif len(self._held) >= self._limit:
            self.make_room()
        with trio.CancelScope() as scope:
            self._held[scope] = party
            try:
                yield
            finally:
                self._held.pop(scope, None)

    def make_room(self) -> None:
        """Take the oldest slot from the party that holds most, if any is held."""
        for party, _ in Counter(self._held.values()).most_common(1):  # among equals, the party with the oldest slot
            self._release_oldest(party)

    def _release_oldest(self, party: str) -> None:
        oldest = next(scope for scope, holder in self._held.items() if holder == party)
        del self._held[oldest]
        oldest.cancel()
