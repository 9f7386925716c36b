"""Leases without a job outlive the pod, and cost the API server one write each."""

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import trio
from trio.testing import MockClock

from hypha_contracts.kubernetes_errors import Unavailable
from hypha_contracts.node_config import KubernetesConfig
from hypha_messages.types import Resources
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.runtimes.kubernetes import leases as kubernetes_leases
from hypha_worker.runtimes.kubernetes.api import KubernetesApi
from hypha_worker.runtimes.kubernetes.leases import ClusterLedgerStore
from support.worker import ALICE, HALF, TRAIN, WHOLE, ledger_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files in place: the clock would jump while a thread is at work."""

    async def run_sync(function: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    monkeypatch.setattr(kubernetes_leases, "time", trio.current_time)


class Worker:
    """A HyphaWorker in memory."""

    def __init__(self) -> None:
        self.node: dict[str, Any] = {}
        self.writes = 0
        self.away = False

    async def get(self, _path: str) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {"status": {"node": copy.deepcopy(self.node)}}

    async def merge(self, path: str, body: dict[str, Any]) -> None:
        await trio.sleep(10 if self.away else 0.01)
        if self.away:
            raise Unavailable("GET /", 0, "", "no answer")
        assert path.endswith("/hyphaworkers/gpu/status")
        self.node |= copy.deepcopy(body["status"]["node"])
        self.writes += 1


@dataclass
class Pod:
    """A pod with its ledger and the store of that."""

    ledger: Ledger
    store: ClusterLedgerStore

    async def save(self) -> None:
        await self.store.save(self.ledger.state())


@asynccontextmanager
async def open_pod(worker: Worker, directory: Path) -> AsyncIterator[Pod]:
    """A pod that has started on this disk."""
    cluster = KubernetesConfig(namespace="ns", worker="gpu", worker_uid="uid")
    file = LedgerFile(directory / "leases.json")
    store = ClusterLedgerStore(file, cast("KubernetesApi", worker), cluster, lease_s=30)
    pod = Pod(ledger_of(WHOLE, trio.current_time, duration_s=30), store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        if (saved := await store.load()) is not None:
            pod.ledger.restore(saved)
        await pod.save()
        yield pod
        nursery.cancel_scope.cancel()


def held(pod: Pod, resources: Resources = HALF) -> Lease:
    lease = pod.ledger.offer(ALICE, uuid4(), [TRAIN, TRAIN], resources)
    assert lease is not None
    pod.ledger.renew(lease.id, ALICE)
    return lease


def disk(tmp_path: Path) -> Path:
    directory = tmp_path / str(uuid4())
    directory.mkdir()
    return directory


async def test_the_first_renewal_of_a_lease_writes_the_worker_and_later_ones_do_not(
    tmp_path: Path,
) -> None:
    worker = Worker()
    async with open_pod(worker, tmp_path) as pod:
        lease = held(pod)
        before = worker.writes
        await pod.save()
        assert [kept["id"] for kept in worker.node["leases"]] == [str(lease.id)]
        for _ in range(10):
            await trio.sleep(5)
            pod.ledger.renew(lease.id, ALICE)
            await pod.save()
        assert worker.writes == before + 1


async def test_the_next_pod_has_the_lease_for_its_full_duration(tmp_path: Path) -> None:
    worker = Worker()
    async with open_pod(worker, disk(tmp_path)) as pod:
        held(pod)
        (lease,) = pod.ledger.leases
        await pod.save()
        await trio.sleep(29)
    async with open_pod(worker, disk(tmp_path)) as pod:
        (found,) = pod.ledger.leases
        assert found.deadline == pytest.approx(trio.current_time() + 30, abs=0.1)
        assert lease.accepted is not None
        kept = {"deadline": found.deadline, "executors": (TRAIN,), "accepted": int(lease.accepted)}
        assert found == lease.model_copy(update=kept)
        pod.ledger.assign(ALICE, TRAIN, uuid4())


async def test_the_next_pod_has_the_accounts_and_counts_no_lease_twice(tmp_path: Path) -> None:
    worker = Worker()
    async with open_pod(worker, disk(tmp_path)) as pod:
        held(pod)
        await trio.sleep(10)
        pod.ledger.assign(ALICE, TRAIN, task_id := uuid4())
        (lease,) = pod.ledger.leases
        pod.ledger.end(task_id, "Finished")
        await pod.save()
        await trio.sleep(1)
    async with open_pod(worker, disk(tmp_path)) as pod:
        (account,) = pod.ledger.accounts.of
        assert (account.scheduler, account.leases) == (ALICE, 1)
        assert account.leased_s == pytest.approx(10, abs=1)
        pod.ledger.recover(lease)
        pod.ledger.end(task_id, "Finished")
        assert pod.ledger.accounts.of == (account,)


@pytest.mark.parametrize("end", ["a job takes it", "it lapses"])
async def test_a_lease_that_has_ended_does_not_come_back(end: str, tmp_path: Path) -> None:
    worker = Worker()
    async with open_pod(worker, disk(tmp_path)) as pod:
        held(pod)
        await pod.save()
        if end == "a job takes it":
            pod.ledger.assign(ALICE, TRAIN, uuid4())
        else:
            await trio.sleep(31)
            pod.ledger.expire()
        await pod.save()
        await trio.sleep(0.5)
    async with open_pod(worker, disk(tmp_path)) as pod:
        assert not pod.ledger.leases


async def test_a_restarted_container_uses_its_own_file(tmp_path: Path) -> None:
    worker, directory = Worker(), disk(tmp_path)
    async with open_pod(worker, directory) as pod:
        held(pod)
        await pod.save()
        worker.away = True
        await trio.sleep(31)
        pod.ledger.expire()
        await pod.save()
    worker.away = False
    async with open_pod(worker, directory) as pod:
        assert not pod.ledger.leases
        await trio.sleep(0.5)
        assert worker.node["leases"] == []


async def test_without_an_api_server_a_first_renewal_waits_a_moment_and_is_written_when_it_is_back(
    tmp_path: Path,
) -> None:
    worker = Worker()
    async with open_pod(worker, tmp_path) as pod:
        worker.away = True
        lease, start = held(pod), trio.current_time()
        await pod.save()
        assert trio.current_time() == pytest.approx(start + 2, abs=0.1)
        await pod.save()
        assert trio.current_time() == pytest.approx(start + 2, abs=0.1)
        worker.away = False
        await trio.sleep(11)
        assert [kept["id"] for kept in worker.node["leases"]] == [str(lease.id)]


async def test_many_leases_at_once_share_writes(tmp_path: Path) -> None:
    worker = Worker()
    async with open_pod(worker, tmp_path) as pod, trio.open_nursery() as nursery:
        before = worker.writes
        for _ in range(50):
            held(pod, Resources(cpu=0.01))
            nursery.start_soon(pod.save)
    assert len(worker.node["leases"]) == 50
    assert worker.writes <= before + 2
