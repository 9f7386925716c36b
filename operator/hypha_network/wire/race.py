"""Attempts to reach a peer at several IP addresses (happy eyeballs)."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

HEAD_START_S: Final = 0.25
"""How long to wait for one address before the next one is tried beside it."""
Result = TypeVar("Result")
Failure = TypeVar("Failure", bound=Exception)


class AllFailedError(Exception):
    """Every attempt failed, or there was none."""

    def __init__(self, failures: Sequence[Exception]) -> None:
        super().__init__("every attempt failed")
        self.failures = failures


async def race(
    attempts: Sequence[Callable[[], Awaitable[Result]]], failure: type[Failure], discard: Callable[[Result], None]
) -> Result:
    """Start attempts in turn, each a moment after the one before, until one succeeds; then cancel the others.

    Returns the result. Raises AllFailedError if no attempt succeeds.

    Args:
        attempts: the attempts, the preferred one first.
        failure: the error that a failed attempt raises.
        discard: called with the result of each further attempt that succeeded at the same time.
    """
    results: list[Result] = []
    failures: list[Failure] = []

    async def run(attempt: Callable[[], Awaitable[Result]], failed: trio.Event) -> None:
        try:
            results.append(await attempt())
            nursery.cancel_scope.cancel()
        except failure as error:
            failures.append(error)
            failed.set()

    try:
        async with trio.open_nursery() as nursery:
            for attempt in attempts:
                failed = trio.Event()
                nursery.start_soon(run, attempt, failed)
                with trio.move_on_after(HEAD_START_S):
                    await failed.wait()
        if not results:
            raise AllFailedError(failures)
        return results.pop(0)
    finally:
        for late in results:
            discard(late)
