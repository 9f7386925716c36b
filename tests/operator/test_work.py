"""The queue, with a clock that the tests control."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from hypha_contracts.backoff import Backoff
from hypha_contracts.kinds import WORKER
from hypha_contracts.kubernetes_errors import Unavailable
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.queue import MAX_BURST, MIN_INTERVAL_S, WorkQueue
from support.manual_clock import ManualClock, settle

pytestmark = pytest.mark.anyio

A, B = (Key(WORKER, "ns", name) for name in "ab")


class Recorded:
    """Reconciles keys as a test says, and records the times."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.runs: list[tuple[Key, float]] = []
        self.does: Callable[[Key], Awaitable[float | None]] | None = None

    async def reconcile(self, key: Key) -> float | None:
        self.runs.append((key, self._clock.monotonic()))
        return await self.does(key) if self.does else None


@asynccontextmanager
async def running(concurrency: int = 2) -> AsyncIterator[tuple[WorkQueue, Recorded, ManualClock]]:
    clock = ManualClock()
    recorded = Recorded(clock)
    queue = WorkQueue(
        recorded.reconcile,
        clock,
        lambda *_: None,
        concurrency=concurrency,
        backoff=Backoff(first_s=1.0, max_s=300.0, jitter=0),
    )
    task = asyncio.create_task(queue.run())
    await settle()
    try:
        yield queue, recorded, clock
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_key_added_many_times_is_reconciled_once():
    async with running() as (queue, recorded, _):
        for _ in range(100):
            queue.add(A)
        await settle()
        assert recorded.runs == [(A, 0)]


async def test_a_key_added_while_it_runs_runs_once_more_and_never_twice_at_once():
    async with running() as (queue, recorded, _):
        gate, at_once = asyncio.Event(), 0

        async def slow(_: Key) -> None:
            nonlocal at_once
            at_once += 1
            assert at_once == 1
            await gate.wait()
            at_once -= 1

        recorded.does = slow
        queue.add(A)
        await settle()
        for _ in range(5):
            queue.add(A)
        await settle()
        assert len(recorded.runs) == 1
        gate.set()
        await settle()
        assert len(recorded.runs) == 2


async def test_no_more_keys_than_allowed_run_at_once_and_every_key_runs():
    async with running(concurrency=2) as (queue, recorded, _):
        gate = asyncio.Event()
        recorded.does = lambda _: gate.wait()  # type: ignore[assignment,return-value]
        keys = [Key(WORKER, "ns", str(number)) for number in range(5)]
        for key in keys:
            queue.add(key)
        await settle()
        assert len(recorded.runs) == 2
        assert queue.waiting == 3
        gate.set()
        await settle()
        assert [key for key, _ in recorded.runs] == keys


async def test_the_earliest_of_several_times_counts():
    async with running() as (queue, recorded, clock):
        queue.add(A, after_s=10)
        queue.add(A, after_s=5)
        queue.add(A, after_s=20)
        await settle()
        await clock.pass_(4.9)
        assert recorded.runs == []
        await clock.pass_(0.1)
        assert recorded.runs == [(A, 5)]
        await clock.pass_(60)
        assert len(recorded.runs) == 1


async def test_a_key_that_is_added_now_does_not_wait_for_its_planned_time():
    async with running() as (queue, recorded, clock):
        queue.add(A, after_s=10)
        queue.add(A)
        await settle()
        assert recorded.runs == [(A, 0)]
        await clock.pass_(10)
        assert len(recorded.runs) == 1


async def test_a_reconcile_determines_when_its_key_runs_again():
    async with running() as (queue, recorded, clock):
        answers = iter([30.0, None])

        async def answer(_: Key) -> float | None:
            return next(answers)

        recorded.does = answer
        queue.add(A)
        await settle()
        for _ in range(100):
            await clock.pass_(1)
        assert recorded.runs == [(A, 0), (A, 30)]


@pytest.mark.parametrize("error", [Unavailable("GET /x", 503, "", "busy"), ValueError("a bug")])
async def test_pauses_after_failures_grow_until_a_success(error: Exception):
    async with running() as (queue, recorded, clock):
        failing = True

        async def maybe(_: Key) -> None:
            if failing:
                raise error

        recorded.does = maybe
        queue.add(A)
        await settle()
        for _ in range(400):
            await clock.pass_(1)
        times = [time for _, time in recorded.runs]
        assert times[:6] == [0, 1, 3, 7, 15, 31]
        failing = False
        queue.add(A)
        await settle()
        failing, recorded.runs[:] = True, []
        queue.add(A)
        await settle()
        await clock.pass_(1)
        assert len(recorded.runs) == 2


async def test_a_key_that_changes_while_it_fails_still_waits_for_its_pause():
    async with running() as (queue, recorded, clock):

        async def fail(key: Key) -> None:
            queue.add(key)
            raise Unavailable("GET /x", 0, "", "gone")

        recorded.does = fail
        queue.add(A)
        await settle()
        assert len(recorded.runs) == 1
        await clock.pass_(1)
        assert len(recorded.runs) == 2


async def test_a_key_that_hangs_blocks_no_other_key_and_is_measured():
    async with running(concurrency=2) as (queue, recorded, clock):
        never = asyncio.Event()

        async def hang(key: Key) -> None:
            if key == A:
                await never.wait()

        recorded.does = hang
        queue.add(A)
        queue.add(B)
        await settle()
        await clock.pass_(100)
        assert [key for key, _ in recorded.runs] == [A, B]
        assert queue.longest_s() == 100


async def test_a_key_that_changes_without_end_runs_at_its_interval_while_another_key_runs_at_once():
    async with running() as (queue, recorded, clock):
        for _ in range(4 * MAX_BURST):
            queue.add(A)
            await clock.pass_(0.25)
        times = [time for _, time in recorded.runs]
        assert len(times) <= MAX_BURST + MAX_BURST / MIN_INTERVAL_S
        assert times[MAX_BURST + 10] - times[MAX_BURST + 9] == MIN_INTERVAL_S
        queue.add(B)
        await settle()
        assert recorded.runs[-1] == (B, clock.monotonic())
        await clock.pass_(MIN_INTERVAL_S)
        await clock.pass_(MAX_BURST * MIN_INTERVAL_S)
        recorded.runs.clear()
        for _ in range(MAX_BURST):
            queue.add(A)
            await settle()
        assert recorded.runs == [(A, clock.monotonic())] * MAX_BURST
        assert len(queue._idle_s) == 1


async def test_changes_go_before_the_backlog_with_which_a_leader_begins():
    clock = ManualClock()
    recorded = Recorded(clock)
    queue = WorkQueue(recorded.reconcile, clock, lambda *_: None, concurrency=1)  # type: ignore[arg-type]
    old = [Key(WORKER, "ns", f"old-{number}") for number in range(5)]
    gate = asyncio.Event()

    async def slow(_: Key) -> None:
        await gate.wait()

    recorded.does = slow
    task = asyncio.create_task(queue.run([A, *old]))
    await settle()
    queue.add(B)
    queue.add(old[3])
    assert queue.waiting == len(old) + 1
    gate.set()
    await settle()
    assert [key for key, _ in recorded.runs] == [A, B, old[3], *old[:3], old[4]]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_queue_that_stands_by_keeps_nothing_and_begins_with_all_keys_when_it_runs_again():
    async with running() as (queue, recorded, clock):
        recorded.does = lambda _: asyncio.sleep(0, 30.0)
        queue.add(A)
        await settle()
    queue.add(B)
    await clock.pass_(60)
    assert queue.waiting == 0
    assert recorded.runs == [(A, 0)]
    task = asyncio.create_task(queue.run([A]))
    await settle()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert recorded.runs == [(A, 0), (A, 60)]
