"""Run several tasks together."""

import asyncio
from collections.abc import Awaitable


async def first_ends(*running: Awaitable[None]) -> None:
    """Wait for one of several to end, then cancel all of them in this order; raise the error of one that failed."""
    tasks = [asyncio.ensure_future(one) for one in running]
    outcomes: list[BaseException | None] = []
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
            outcomes += await asyncio.gather(task, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
