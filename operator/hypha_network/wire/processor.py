"""Shares the processor between the parties whose input this node processes.

Every task step is charged to the party that caused it. Under contention, the party that used least time lately goes
first, and the others wait before this node reads more of their input. Nothing is dropped. A party that did useful work
does not wait, because beside a hundred attackers an equal share would be too little for an answer in time.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import nsmallest
from math import exp
from time import perf_counter, thread_time
from typing import Protocol
from weakref import WeakValueDictionary

import trio

CONTENDED_S = 0.001
"""Parties have to wait for their turn once the steps of one pass of the event loop have taken this long."""
TURNS_PER_PASS = 2
"""How many waiting parties go on in one pass of the event loop."""
MEMORY_S = 10.0
"""The time constant with which used processing time is forgotten."""
FAVOURED_S = 3600.0
"""How long a party that did useful work does not wait for its turn."""
MAX_FAVOURED_USE_S = 2.0
"""A favoured party that has used more than this lately waits like all others."""


class Payer(Protocol):
    """A party to whose account task steps are charged."""

    def charge(self, elapsed_s: float, now_s: float) -> None:
        """Record a task step that this party caused."""


_payer: ContextVar[Payer | None] = ContextVar("payer", default=None)
_processor: trio.lowlevel.RunVar["_Processor | None"] = trio.lowlevel.RunVar("processor", None)


class CpuShare:
    """The processing time that one party has used lately."""

    def __init__(self) -> None:
        self._used_s = 0.0
        self._charged_at_s = 0.0
        self._favoured_until_s = 0.0
        self.waiting = trio.lowlevel.ParkingLot()

    def favour(self) -> None:
        """Record that this party did useful work."""
        self._favoured_until_s = perf_counter() + FAVOURED_S

    def charge(self, elapsed_s: float, now_s: float) -> None:
        """Record a task step that this party caused."""
        self._used_s = self.used_s(now_s) + elapsed_s
        self._charged_at_s = now_s

    def used_s(self, now_s: float) -> float:
        """Return the time used, in which older use counts less."""
        return self._used_s * exp((self._charged_at_s - now_s) / MEMORY_S)

    async def turn(self) -> None:
        """Wait until this party may use the processor. Without contention, this returns at once."""
        processor = _processor.get()
        if processor is not None and processor.contended and not self._goes_first():
            await processor.queue(self)

    def _goes_first(self) -> bool:
        now_s = perf_counter()
        return now_s < self._favoured_until_s and self.used_s(now_s) < MAX_FAVOURED_USE_S


class CpuBudget:
    """A fixed share of one core, for parties that are too many to have a share each."""

    def __init__(self, share: float, burst_s: float) -> None:
        self._share = share
        self._burst_s = burst_s
        self._balance_s = burst_s
        self._charged_at_s = perf_counter()
        self._turn = trio.StrictFIFOLock()
        self._parties: WeakValueDictionary[str, trio.StrictFIFOLock] = WeakValueDictionary()

    def charge(self, elapsed_s: float, now_s: float) -> None:
        """Record a task step of one of the parties."""
        earned_s = (now_s - self._charged_at_s) * self._share
        self._balance_s = min(self._balance_s + earned_s, self._burst_s) - elapsed_s
        self._charged_at_s = now_s

    def turn_of(self, party: str) -> Callable[[], Awaitable[None]]:
        """Return `turn` for a party. The parties go one after the other, however many steps of one party wait."""
        steps = self._parties.setdefault(party, trio.StrictFIFOLock())

        async def turn() -> None:
            async with steps:
                await self.turn()

        return turn

    async def turn(self) -> None:
        """Wait until the budget allows another step. In each pass of the event loop at most one caller goes on."""
        async with self._turn:
            await trio.lowlevel.checkpoint()
            self.charge(0.0, perf_counter())
            while self._balance_s < 0:
                await trio.sleep(-self._balance_s / self._share)
                self.charge(0.0, perf_counter())


@contextmanager
def charged_to(payer: Payer) -> Iterator[None]:
    """Charge the steps of this task, and of the tasks that it starts, to a party."""
    token = _payer.set(payer)
    try:
        yield
    finally:
        _payer.reset(token)


def share_processor() -> None:
    """Measure the task steps of this event loop from now on."""
    if _processor.get() is None:
        processor = _Processor()
        _processor.set(processor)
        trio.lowlevel.add_instrument(processor)
        trio.lowlevel.spawn_system_task(processor.run)


class _Processor(trio.abc.Instrument):
    """Measures task steps, and gives the waiting parties their turns."""

    def __init__(self) -> None:
        self._waiting: set[CpuShare] = set()
        self._filled = trio.Event()
        self._measured_s = thread_time()
        self._pass_s = 0.0

    @property
    def contended(self) -> bool:
        """Whether a party has to wait for its turn."""
        return bool(self._waiting) or self._pass_s > CONTENDED_S

    async def queue(self, share: CpuShare) -> None:
        """Wait for a turn of this party."""
        self._waiting.add(share)
        self._filled.set()
        await share.waiting.park()

    async def run(self) -> None:
        """Give turns without end, to those parties first that used least time."""
        while True:
            await self._filled.wait()
            now_s = perf_counter()
            for share in nsmallest(TURNS_PER_PASS, self._waiting, key=lambda share: share.used_s(now_s)):
                share.waiting.unpark()
                if not share.waiting:
                    self._waiting.remove(share)
            if not self._waiting:
                self._filled = trio.Event()
            await trio.lowlevel.cancel_shielded_checkpoint()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Charge the step's party for the processor time that this thread has used since the last step."""
        measured_s = thread_time()
        payer = task.context.get(_payer)
        if payer is not None:
            elapsed_s = measured_s - self._measured_s
            payer.charge(elapsed_s, perf_counter())
            self._pass_s += elapsed_s
        self._measured_s = measured_s

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - trio's interface
        """Begin a pass."""
        self._pass_s = 0.0
