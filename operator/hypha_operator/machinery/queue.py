"""The queue of keys to reconcile: immediately after a change, with growing pauses after failures."""

import asyncio
import heapq
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

from hypha_contracts.backoff import Backoff
from hypha_contracts.kubernetes_errors import ApiError
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.kinds import Key

Reconcile: TypeAlias = Callable[[Key], Awaitable[float | None]]
"""Brings the children of a key's object in line with the object's specification.

Returns seconds until the next reconcile, unless one of the objects changes before. None: no further reconcile.
"""
_BACKOFF: Final = Backoff(first_s=1.0, max_s=300.0)
MAX_BURST: Final = 30
MIN_INTERVAL_S: Final = 2.0
"""A key may be reconciled this many times at once, and then once per interval."""

_log = logging.getLogger(__name__)


class WorkQueue:
    """Keys that are ready, keys that are due later, and keys whose reconcile is running.

    Adding a key that is ready changes nothing. Adding a key whose reconcile is running makes it run once more. A key
    that was reconciled often waits for its interval, because pods and nodes can change their objects without end.

    Args:
        reconcile: reconciles a key. The queue may call it at any time, but never twice at once for one key. It may be
            cancelled or die at any await, because the next call starts from the state that it then finds. If it
            raises, the queue logs the error and tries the key again later.
        clock: the source of time.
        on_reconcile: receives the duration in seconds of every reconcile, and whether it failed.
        concurrency: the maximum number of reconciles that run at once.
        backoff: the pauses after consecutive failures of one key.
    """

    def __init__(
        self,
        reconcile: Reconcile,
        clock: Clock,
        on_reconcile: Callable[[Key, float, bool], object],
        *,
        concurrency: int = 16,
        backoff: Backoff = _BACKOFF,
    ) -> None:
        self._reconcile_key, self._clock, self._on_reconcile = reconcile, clock, on_reconcile
        self._free, self._backoff = concurrency, backoff
        self._ready: dict[Key, None] = {}
        self._backlog: dict[Key, None] = {}
        self._due_s: dict[Key, float] = {}
        self._timers: list[tuple[float, Key]] = []
        self._running: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._pauses: dict[Key, Iterator[float]] = {}
        self._idle_s: OrderedDict[Key, float] = OrderedDict()
        self._changed = asyncio.Event()
        self._is_running = False

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Reconcile a key as soon as possible, or after a time in seconds. The earliest of several times counts.

        No-op while the queue does not run, because `run` begins with all keys.
        """
        if not self._is_running:
            return
        after_s = max(after_s, self._hold_s(key))
        if after_s <= 0:
            self._enqueue(key)
        elif key not in self._ready:
            due_s = self._clock.monotonic() + after_s
            if due_s >= self._due_s.get(key, float("inf")):
                return
            self._due_s[key] = due_s
            heapq.heappush(self._timers, (due_s, key))
        self._changed.set()

    def _enqueue(self, key: Key) -> None:
        if key in self._running:
            self._again.add(key)
        else:
            self._due_s.pop(key, None)
            self._ready[key] = None

    def _hold_s(self, key: Key) -> float:
        """Return for how many seconds a key that was reconciled often has to wait."""
        return self._idle_s.get(key, 0.0) - (MAX_BURST - 1) * MIN_INTERVAL_S - self._clock.monotonic()

    def _count(self, key: Key, now_s: float) -> None:
        """Count a reconcile: it moves the time at which the key has its complete burst again by an interval."""
        while self._idle_s and next(iter(self._idle_s.values())) <= now_s:
            self._idle_s.popitem(last=False)
        self._idle_s[key] = max(self._idle_s.pop(key, 0.0), now_s) + MIN_INTERVAL_S

    @property
    def waiting(self) -> int:
        """The number of keys that are ready."""
        return len(self._ready.keys() | self._backlog.keys())

    def longest_s(self) -> float:
        """Return for how many seconds the oldest running reconcile has been running."""
        return self._clock.monotonic() - min(self._running.values(), default=self._clock.monotonic())

    async def run(self, backlog: Iterable[Key] = ()) -> None:
        """Reconcile keys until cancelled, which also cancels running reconciles. May be called again afterwards.

        Args:
            backlog: all keys, in the order in which to reconcile them. Keys that are added go before them.
        """
        self._backlog, self._is_running = dict.fromkeys(backlog), True
        try:
            await self._run()
        finally:
            self._is_running = False
            for keys in (self._ready, self._backlog, self._due_s, self._timers, self._again, self._pauses):
                keys.clear()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                self._release_due()
                while self._free and (key := self._next()):
                    self._free -= 1
                    self._running[key] = now_s = self._clock.monotonic()
                    self._count(key, now_s)
                    tasks.create_task(self._reconcile(key), name=str(key))
                await self._wait()

    def _next(self) -> Key | None:
        """Remove the key to reconcile next from those that are ready, and return it."""
        for ready in (self._ready, self._backlog):
            for key in ready:
                if key not in self._running:
                    del ready[key]
                    self._backlog.pop(key, None)
                    return key
        return None

    def _release_due(self) -> None:
        now_s = self._clock.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            due_s, key = heapq.heappop(self._timers)
            if self._due_s.get(key) == due_s:
                del self._due_s[key]
                self._enqueue(key)

    async def _wait(self) -> None:
        """Return when something changed or the next key is due."""
        changed = asyncio.create_task(self._changed.wait())
        waits: set[asyncio.Task[Any]] = {changed}
        if self._timers:
            waits.add(asyncio.create_task(self._clock.sleep(max(self._timers[0][0] - self._clock.monotonic(), 0))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _reconcile(self, key: Key) -> None:
        started_s, failed, after_s = self._clock.monotonic(), True, None
        try:
            after_s = await self._reconcile_key(key)
            failed = False
        except ApiError as error:
            _log.warning("%s: %s", key, error)
        except Exception:
            _log.exception("%s: the operator has a bug; please report it", key)
        finally:
            del self._running[key]
            self._free += 1
            self._changed.set()
        self._on_reconcile(key, self._clock.monotonic() - started_s, failed)
        if failed:
            after_s = next(self._pauses.setdefault(key, self._backoff.pauses()))
        else:
            self._pauses.pop(key, None)
        again = key in self._again
        self._again.discard(key)
        if again and not failed:
            self.add(key)
        elif after_s is not None:
            self.add(key, after_s)
