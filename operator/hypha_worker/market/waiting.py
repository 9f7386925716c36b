"""Requests that wait for an offer, so that competing requests have time to arrive. Pure."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from hypha_messages.advertisement import RequestWorker

_MAX_WAIT_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.1
_STAND_BACK_S: Final = 2.0
"""How long a scheduler that let an offer lapse ranks behind the others. Each further lapse makes it four times longer,
so that schedulers that accept nothing cannot take turns to keep the capacity reserved."""
_MAX_STAND_BACK_S: Final = 128.0
_MAX_SCHEDULERS: Final = 4096

Key = tuple[str, UUID]


@dataclass(frozen=True)
class Waiting:
    """A request and its scheduler. `since` is when it arrived, in monotonic seconds."""

    scheduler: str
    request: RequestWorker
    since: float

    @property
    def key(self) -> Key:
        """Identifies the request."""
        return self.scheduler, self.request.id


class WaitingRequests:
    """At most `limit` requests, and at most a quarter of them from one scheduler. Times are monotonic seconds."""

    def __init__(self, limit: int, window_s: float, window_messages: int) -> None:
        self._limit = limit
        self._share = max(1, limit // 4)
        self._window_s = window_s
        self._window_messages = window_messages
        self._fresh: dict[Key, Waiting] = {}
        self._passed_over: dict[Key, Waiting] = {}
        self._counts: Counter[str] = Counter()
        self._looked_at = float("-inf")
        self._lapsed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Per scheduler, how many offers it let lapse since it last accepted one, and when it did last."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._passed_over)

    def __contains__(self, key: Key) -> bool:
        return key in self._fresh or key in self._passed_over

    @property
    def fresh(self) -> tuple[Waiting, ...]:
        """The requests that have not been considered yet."""
        return tuple(self._fresh.values())

    @property
    def all(self) -> tuple[Waiting, ...]:
        """All requests, oldest first."""
        return (*self._passed_over.values(), *self._fresh.values())

    def add(self, waiting: Waiting) -> bool:
        """Add a request. False if it waits already or too many of its scheduler wait."""
        if waiting.key in self or self._counts[waiting.scheduler] >= self._share:
            return False
        if len(self) >= self._limit:
            oldest = self._passed_over or self._fresh
            self.remove(next(iter(oldest.values())))
        self._fresh[waiting.key] = waiting
        self._counts[waiting.scheduler] += 1
        return True

    def remove(self, waiting: Waiting) -> None:
        """Remove a request that got an offer or will not get one."""
        self._fresh.pop(waiting.key, None)
        self._passed_over.pop(waiting.key, None)
        self._counts[waiting.scheduler] -= 1
        if not self._counts[waiting.scheduler]:
            del self._counts[waiting.scheduler]

    def pass_over(self) -> None:
        """Let the requests that were considered without success wait until capacity is freed."""
        self._passed_over |= self._fresh
        self._fresh = {}

    def drop_expired(self, now: float, wall_clock: float) -> None:
        """Remove the requests whose time is over. Looks for them at an interval, because there may be many."""
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        for waiting in self.all:
            if waiting.request.timeout.timestamp <= wall_clock or now - waiting.since > _MAX_WAIT_S:
                self.remove(waiting)

    def due_in(self, now: float) -> float:
        """Return the seconds until the window of the new requests is over, or infinity if there are none."""
        if not self._fresh:
            return float("inf")
        if len(self._fresh) >= self._window_messages:
            return 0.0
        return max(0.0, next(iter(self._fresh.values())).since + self._window_s - now)

    def record_lapsed(self, scheduler: str, now: float) -> None:
        """Record that a scheduler let an offer lapse. For a while it ranks behind the others."""
        lapses, _ = self._lapsed.get(scheduler, (0, now))
        self._lapsed[scheduler] = (lapses + 1, now)
        self._lapsed.move_to_end(scheduler)
        if len(self._lapsed) > _MAX_SCHEDULERS:
            self._lapsed.popitem(last=False)

    def record_accepted(self, scheduler: str) -> None:
        """Record that a scheduler took an offer."""
        self._lapsed.pop(scheduler, None)

    def stands_back(self, scheduler: str, now: float) -> bool:
        """Whether a scheduler has just let an offer lapse."""
        lapses, then = self._lapsed.get(scheduler, (0, float("-inf")))
        return now - then < min(_STAND_BACK_S * 4.0 ** (min(lapses, 8) - 1), _MAX_STAND_BACK_S)
