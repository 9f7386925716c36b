"""The queue of keys to reconcile: each at most once at a time, at once after a change, later after a failure."""

import asyncio
import heapq
import logging
from collections.abc import Iterator
from typing import Any, Final, Protocol

from hypha_contracts.backoff import Backoff
from hypha_contracts.kubernetes_errors import ApiError
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.reconciler import Reconciler

_BACKOFF: Final = Backoff(first_s=1.0, max_s=300.0)

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives the duration in seconds of every reconcile, and whether it failed."""

    def __call__(self, key: Key, seconds: float, *, failed: bool) -> object:
        """Record one reconcile."""
        ...


class WorkQueue:
    """Keys that are ready, keys that are due later, and keys that run.

    Adding a key that waits changes nothing. Adding a key that runs makes it run once more.

    Args:
        reconciler: reconciles a key.
        clock: the source of time.
        concurrency: how many keys run at once.
        on_reconcile: receives every reconcile.
        backoff: the pauses after failures of one key in a row.
    """

    def __init__(
        self,
        reconciler: Reconciler,
        clock: Clock,
        *,
        concurrency: int = 16,
        on_reconcile: Observer = lambda *_, **__: None,
        backoff: Backoff = _BACKOFF,
    ) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._free = concurrency
        self._on_reconcile = on_reconcile
        self._backoff = backoff
        self._ready: dict[Key, None] = {}
        self._due_s: dict[Key, float] = {}
        self._timers: list[tuple[float, Key]] = []
        self._running: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._pauses: dict[Key, Iterator[float]] = {}
        self._changed = asyncio.Event()

    def add(self, key: Key, after_s: float = 0.0) -> None:
        """Reconcile a key, now or after a time in seconds. The earliest of several times counts."""
        if after_s <= 0:
            if key in self._running:
                self._again.add(key)
            else:
                self._due_s.pop(key, None)
                self._ready[key] = None
        elif key not in self._ready:
            due_s = self._clock.monotonic() + after_s
            if due_s >= self._due_s.get(key, float("inf")):
                return
            self._due_s[key] = due_s
            heapq.heappush(self._timers, (due_s, key))
        self._changed.set()

    @property
    def waiting(self) -> int:
        """How many keys are ready to run."""
        return len(self._ready)

    def longest_s(self) -> float:
        """Return for how many seconds the oldest running reconcile has been running."""
        return self._clock.monotonic() - min(self._running.values(), default=self._clock.monotonic())

    async def run(self) -> None:
        """Reconcile keys until cancelled, which also cancels running reconciles."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._changed.clear()
                self._release_due()
                while self._ready and self._free:
                    key = next(iter(self._ready))
                    del self._ready[key]
                    self._free -= 1
                    self._running[key] = self._clock.monotonic()
                    tasks.create_task(self._reconcile(key), name=str(key))
                await self._wait()

    def _release_due(self) -> None:
        now_s = self._clock.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            due_s, key = heapq.heappop(self._timers)
            if self._due_s.get(key) == due_s:
                del self._due_s[key]
                self.add(key)

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
            after_s = await self._reconciler.reconcile(key)
            failed = False
        except ApiError as error:
            _log.warning("%s: %s", key, error)
        except Exception:
            _log.exception("%s: the operator has a bug; please report it", key)
        finally:
            del self._running[key]
            self._free += 1
            self._changed.set()
        self._on_reconcile(key, self._clock.monotonic() - started_s, failed=failed)
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
