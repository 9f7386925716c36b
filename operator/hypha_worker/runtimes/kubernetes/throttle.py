"""Limits how often a changing state is written."""

from collections.abc import Awaitable, Callable

import trio


class Throttle:
    """Calls `write` after each change of the state, but at most once per interval.

    Args:
        interval_s: Returns the interval in seconds. It is called after each write.
        write: Writes the current state.
    """

    def __init__(self, interval_s: Callable[[], float], write: Callable[[], Awaitable[None]]) -> None:
        self._interval_s = interval_s
        self._write = write
        self._wanted = trio.Event()

    def want(self) -> None:
        """Request a write, because the state has changed."""
        self._wanted.set()

    async def run(self) -> None:
        """Write until cancelled. `flush` makes a write that is then still requested."""
        while True:
            await self._wanted.wait()
            await self.flush()
            await trio.sleep(self._interval_s())

    async def flush(self) -> None:
        """Write now if a write is requested."""
        if not self._wanted.is_set():
            return
        self._wanted = trio.Event()
        try:
            await self._write()
        except trio.Cancelled:
            self._wanted.set()
            raise
