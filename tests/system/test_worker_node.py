"""The node as its owner runs it, with a gateway and a scheduler of this process.

NODE_KILLS (3) says how often a node is killed at a random moment.
"""

import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import UUID, uuid4

import psutil
import pytest
import trio

from hypha_devnet.client import Lease, Request
from hypha_messages.advertisement import TOPIC, decode
from hypha_network.errors import NetworkError
from support.certs import Pki
from support.jobs import train_spec
from support.networks import DEADLINE_S, gateway, member
from support.node_process import NodeProcess, Scheduler, Stage, processes_in, stage

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("NODE_KILLS", "3"))


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


def left_over(node: NodeProcess) -> list[str]:
    """What is left of jobs: directories and processes."""
    jobs = [*node.work_dir.glob("hypha-*"), *node.work_dir.glob("jobs/*")]
    return [*map(str, jobs), *(f"process {pid}" for pid in processes_in(node.work_dir))]


async def until_nothing_is_left(node: NodeProcess) -> None:
    with trio.move_on_after(DEADLINE_S):
        while left_over(node):  # noqa: ASYNC110 - another process sees to it
            await trio.sleep(0.1)
    assert left_over(node) == []


async def running_job(s: Stage) -> tuple[Lease, UUID]:
    """Have a job run; returns its lease and task."""
    lease = await s.scheduler.lease()
    task_id = uuid4()
    assert await s.scheduler.dispatch(lease, train_spec(), task_id)
    return lease, task_id


async def until_logged(node: NodeProcess, text: str, times: int = 1) -> None:
    with trio.move_on_after(DEADLINE_S):
        while node.log.count(text) < times:  # noqa: ASYNC110
            await trio.sleep(0.05)
    assert node.log.count(text) >= times, node.log


async def until_started(node: NodeProcess) -> None:
    with trio.fail_after(DEADLINE_S):
        while not node.starts:  # noqa: ASYNC110 - another process starts it
            await trio.sleep(0.05)


async def test_a_node_with_a_job_listens_for_peers_and_for_nothing_else(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        await running_job(s)
        await until_started(s.node)
        pids = processes_in(s.node.directory)
        assert {s.node.pid, *s.node.starts} < set(pids), "the bridge and the supervisor are among them"
        sockets = [(pid, sock) for pid in pids for sock in psutil.Process(pid).net_connections(kind="inet")]
        accepting = [(pid, sock.type.name) for pid, sock in sockets if sock.laddr and not sock.raddr]
        assert accepting == [(s.node.pid, "SOCK_STREAM")]


async def test_the_log_shows_the_subscription_and_the_peers_that_share_it(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        with entry.subscribe(TOPIC, decode):
            await until_logged(s.node, "subscribed to hypha/worker")
            await until_logged(s.node, "connected peers subscribe to hypha/worker")


async def test_a_job_that_ends_well_is_reported_and_nothing_of_it_is_left(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "finish") as s:
        _, task_id = await running_job(s)
        report = await s.scheduler.status()
        assert (report.task_id, report.status.type) == (task_id, "Finished")
        await until_nothing_is_left(s.node)
        await s.scheduler.lease()


async def test_a_crash_is_reported_and_its_last_lines_are_logged(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "crash") as s:
        await running_job(s)
        assert (await s.scheduler.status()).status.type == "Failed"
        assert "the executor says crash" in s.node.log
        await until_nothing_is_left(s.node)


async def test_a_lease_that_is_not_renewed_ends_its_job(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 1.0}) as s:
        await running_job(s)
        assert (await s.scheduler.status()).status.type == "Failed"
        assert "expired" in s.node.log
        await until_nothing_is_left(s.node)


async def test_sigterm_ends_jobs_reports_their_ends_and_exits_0(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        _, task_id = await running_job(s)
        await until_logged(s.node, "its executor runs")
        s.node.signal(signal.SIGTERM)
        report = await s.scheduler.status()
        assert (report.task_id, report.status.type) == (task_id, "Failed")
        assert await s.node.ended() == 0
        assert left_over(s.node) == []


async def test_a_restarted_node_adopts_its_job_and_lease(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 30.0}) as s:
        lease, task_id = await running_job(s)
        await until_logged(s.node, "its executor runs")
        s.node.signal(signal.SIGKILL)
        await s.node.ended()
        s.node.start()
        await until_logged(s.node, "ready", times=2)
        await s.scheduler.network.wait_until(lambda: lease.peer_id in s.scheduler.network.connected_peers())
        assert await s.scheduler.renew(lease)
        assert "adopted job" in s.node.log
        assert await s.scheduler.dispatch(lease, train_spec(), task_id)
        assert s.node.log.count("runs (train/test)") == 1
        s.node.signal(signal.SIGTERM)
        assert (await s.scheduler.status()).task_id == task_id
        assert await s.node.ended() == 0
        assert left_over(s.node) == []


async def test_a_node_that_restarts_after_its_leases_expired_finds_no_jobs(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run", leases={"duration_s": 1.0}) as s:
        await running_job(s)
        s.node.signal(signal.SIGKILL)
        await s.node.ended()
        await trio.sleep(2)
        s.node.start()
        assert (await s.scheduler.status()).status.type == "Failed"
        await until_nothing_is_left(s.node)
        await s.scheduler.lease()


@pytest.mark.timeout(60 + 10 * KILLS)
async def test_a_node_killed_at_random_moments_loses_no_job_and_books_nothing_twice(pki: Pki) -> None:
    moments = random.Random(20)
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "run", leases={"duration_s": 60.0}) as s,
        member(pki, "other scheduler", entry) as outsider,
    ):
        other = Scheduler(outsider)
        lease = await s.scheduler.lease()
        requests: list[Request] = []
        task_id = uuid4()

        async def keep_asking(ask: Callable[[], Awaitable[object]], every_s: float) -> None:
            while True:
                with suppress(NetworkError):
                    await ask()
                await trio.sleep(every_s)

        async def renew() -> None:
            assert await s.scheduler.renew(lease), s.node.log

        async def dispatch() -> None:
            assert await s.scheduler.dispatch(lease, train_spec(), task_id), s.node.log

        async def ask() -> None:
            requests.append(await other.ask())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking, dispatch, 0.1)
            nursery.start_soon(keep_asking, renew, 0.3)
            nursery.start_soon(keep_asking, ask, 0.3)
            for _ in range(KILLS):
                await trio.sleep(moments.uniform(0, 4))
                s.node.signal(signal.SIGKILL)
                await s.node.ended()
                s.node.start()
            await until_logged(s.node, "ready", times=s.node.log.count("ready") + 1)
            await renew()
            await dispatch()
            nursery.cancel_scope.cancel()
        await until_started(s.node)
        (executor,) = s.node.starts
        assert executor in processes_in(s.node.directory)
        assert requests
        assert not any(request.offers for request in requests)
        s.node.signal(signal.SIGTERM)
        assert (await s.scheduler.status()).task_id == task_id
        assert await s.node.ended() == 0
        assert left_over(s.node) == []


async def test_an_owners_file_at_the_sockets_path_is_kept_and_named_in_the_error(pki: Pki) -> None:
    async with gateway(pki) as entry, stage(pki, entry, "run") as s:
        await s.scheduler.lease()
        s.node.signal(signal.SIGTERM)
        await s.node.ended()
        socket = s.node.work_dir / "connector.sock"
        socket.write_text("mine")
        s.node.start()
        assert await s.node.ended() == 1
        assert socket.read_text() == "mine"
        assert "connector.sock: cannot listen: Address already in use" in s.node.log
        assert "Traceback" not in s.node.log
