"""Wait until something changes."""

from collections.abc import Callable

import trio


class Changes:
    """Wakes every task that waits for a change."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        """Wake every waiting task."""
        self._event.set()
        self._event = trio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._event.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; checks it now and after every change."""
        while not condition():
            await self.wait()
