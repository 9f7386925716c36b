"""The operator makes only a few calls at a time."""

import asyncio

import pytest

from hypha_operator.machinery.turns import Turns
from support.manual_clock import settle

pytestmark = pytest.mark.anyio


class Calls:
    """Calls that run until a test ends them.

    Attributes:
        running: the numbers of the calls that have begun, in their order.
    """

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.running: list[int] = []

    async def run(self, number: int, end: asyncio.Event) -> None:
        async with self._turns.turn():
            self.running.append(number)
            await end.wait()


async def test_a_call_waits_until_another_one_ends_and_calls_run_in_their_order():
    calls, ends = Calls(Turns(at_once=2, counted_s=60)), [asyncio.Event() for _ in range(4)]
    async with asyncio.TaskGroup() as tasks:
        for number, end in enumerate(ends):
            tasks.create_task(calls.run(number, end))
        await settle()
        assert calls.running == [0, 1]
        ends[1].set()
        await settle()
        assert calls.running == [0, 1, 2]
        for end in ends:
            end.set()
    assert calls.running == [0, 1, 2, 3]


async def test_calls_that_are_not_answered_soon_let_others_run():
    calls, answered = Calls(Turns(at_once=1, counted_s=0)), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(calls.run(number, answered))
        await settle()
        assert calls.running == [0, 1, 2]
        answered.set()


async def test_a_call_that_is_cancelled_ends_its_turn():
    calls, never = Calls(Turns(at_once=1, counted_s=60)), asyncio.Event()
    first, second = (asyncio.create_task(calls.run(number, never)) for number in range(2))
    await settle()
    first.cancel()
    await settle()
    assert calls.running == [0, 1]
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
