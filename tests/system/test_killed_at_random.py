"""A node killed at random moments of a job, and started again each time, as a scheduler sees it."""

import random
import signal
from uuid import UUID, uuid4

import pytest
import trio

from hypha_network.errors import NetworkError
from support.certs import Pki
from support.jobs import train_spec
from support.networks import DEADLINE_S, gateway
from support.node_process import NodeProcess, Scheduler, processes_in, stage

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(420)]

KILLS = 20
LEASE_S = 30.0
LONGEST_LIFE_S = 2.0
"""A node is killed at most this long after it was started or came back, so that some kills hit its start, too."""


async def renewed(scheduler: Scheduler, worker: str, lease: UUID) -> bool:
    """Renew as a scheduler does while a worker comes and goes: until it answers."""
    with trio.fail_after(DEADLINE_S):
        while True:
            try:
                return not (await scheduler.renew(worker, lease)).failed
            except NetworkError:
                await trio.sleep(0.1)


async def dispatched(scheduler: Scheduler, worker: str, task_id: UUID) -> bool:
    with trio.fail_after(DEADLINE_S):
        while True:
            try:
                return not (await scheduler.dispatch(worker, train_spec(), task_id)).failed
            except NetworkError:
                await trio.sleep(0.1)


async def killed_and_started(node: NodeProcess) -> None:
    node.signal(signal.SIGKILL)
    await node.ended()
    node.start()


def executors(node: NodeProcess) -> list[int]:
    return [pid for pid in processes_in(node.work_dir) if is_executor(node, pid)]


def is_executor(node: NodeProcess, pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
            return str(node.directory / "executor.py").encode() in file.read().split(b"\0")
    except OSError:
        return False


async def test_a_node_killed_at_twenty_random_moments_loses_no_job_and_books_nothing_twice() -> None:
    chance = random.Random(20)
    pki = Pki()
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": LEASE_S}) as s:
        worker, lease = await s.scheduler.lease()
        task_id = uuid4()
        async with trio.open_nursery() as nursery:  # the first kill may hit the dispatch itself
            nursery.start_soon(dispatched, s.scheduler, worker, task_id)
            await trio.sleep(chance.uniform(0, 0.1))
            await killed_and_started(s.node)
        for _ in range(KILLS - 1):
            await trio.sleep(chance.uniform(0, LONGEST_LIFE_S))
            await killed_and_started(s.node)
            assert await renewed(s.scheduler, worker, lease), s.node.log
            # The same task again is the same job: the answer is yes, and nothing is started.
            assert await dispatched(s.scheduler, worker, task_id), s.node.log
        with trio.fail_after(DEADLINE_S):
            while len(executors(s.node)) != 1:  # noqa: ASYNC110 - another process sees to it
                await trio.sleep(0.05)
        assert len(list(s.node.work_dir.glob("hypha-*"))) == 1
        # All of the worker is leased: it must not offer it again.
        await s.scheduler.advertise()
        with trio.move_on_after(1) as nothing:
            await s.scheduler.offers.receive()
        assert nothing.cancelled_caught, "a second lease was offered on resources that are taken"
        assert s.scheduler.statuses.statistics().current_buffer_used == 0, "the job was reported as ended"
