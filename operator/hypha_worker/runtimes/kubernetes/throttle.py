"""Writes that follow a state: the latest of it, and not too often."""

from collections.abc import Awaitable, Callable

import trio


class Throttle:
    """Calls `write`, which writes the state as it is then, whenever that is wanted, but at most once an interval.

    How long that is may change: `interval_s` is asked after each write.
    """

    def __init__(self, interval_s: Callable[[], float], write: Callable[[], Awaitable[None]]) -> None:
        self._interval_s = interval_s
        self._write = write
        self._wanted = trio.Event()

    def want(self) -> None:
        """The state has changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Write until cancelled; what is still wanted then is left to `flush`."""
        while True:
            await self._wanted.wait()
            await self.flush()
            await trio.sleep(self._interval_s())

    async def flush(self) -> None:
        """Write now if that is wanted."""
        if not self._wanted.is_set():
            return
        self._wanted = trio.Event()
        try:
            await self._write()
        except trio.Cancelled:
            self._wanted.set()
            raise
