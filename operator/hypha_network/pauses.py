"""Growing pauses after failures, each by what failed. Bounded."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Final

import trio

from hypha_contracts.backoff import Backoff

MAX_PAUSES: Final = 1024


class Pauses:
    """What failed lately, for example at a peer, and for how long not to try it again.

    Args:
        backoff: the pauses.
        free: after how many failures there is no pause yet.
    """

    def __init__(self, backoff: Backoff, free: int = 0) -> None:
        self._backoff = backoff
        self._free = free
        self._pauses: OrderedDict[tuple[str, ...], tuple[float, Iterator[float]]] = OrderedDict()
        """The time of trio's clock when a pause ends, and the pauses after it."""

    def wait_s(self, *failed: str) -> float:
        """Return for how many seconds not to try again."""
        until, _ = self._pauses.get(failed, (0.0, None))
        return until - trio.current_time()

    def add(self, *failed: str) -> None:
        """Record a failure."""
        fresh = chain(repeat(0.0, self._free), self._backoff.pauses())
        _, pauses = self._pauses.pop(failed, (0.0, fresh))
        self._pauses[failed] = trio.current_time() + next(pauses), pauses
        if len(self._pauses) > MAX_PAUSES:
            self._pauses.popitem(last=False)

    def remove(self, *failed: str) -> None:
        """Record a success."""
        self._pauses.pop(failed, None)
