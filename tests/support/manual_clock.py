"""A clock for the operator's parts, which a test sets forward."""

import asyncio
from datetime import UTC, datetime, timedelta


class ManualClock:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._now_s)

    def monotonic(self) -> float:
        return self._now_s

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self._now_s + seconds, woken))
        await woken.wait()

    async def pass_(self, seconds: float) -> None:
        """Set the clock forward and wake the sleepers that are due."""
        self._now_s += seconds
        for due_s, woken in self._sleepers:
            if due_s <= self._now_s:
                woken.set()
        await settle()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)
