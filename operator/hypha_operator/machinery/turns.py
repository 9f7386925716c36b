"""Limit how many calls the operator makes at a time, so that the API server has time for other clients too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

AT_ONCE: Final = 5
COUNTED_S: Final = 0.25


class Turns:
    """Makes calls wait while several others run. Calls that wait run in their order.

    A call counts for a short time only, so calls that the API server does not answer delay no others for long.

    Args:
        at_once: the most calls that count at a time.
        counted_s: how long each of them counts at most.
    """

    def __init__(self, at_once: int = AT_ONCE, counted_s: float = COUNTED_S) -> None:
        self._free, self._counted_s = asyncio.Semaphore(at_once), counted_s

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until few enough calls run, and count one more while the block runs."""
        await self._free.acquire()
        counted = True

        def release() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._counted_s, release)
        try:
            yield
        finally:
            timer.cancel()
            release()
