"""Leases without a job outlive the pod, and cost the API server one write each."""

import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from hypha_worker.runtimes.kubernetes import leases as kubernetes_leases
from hypha_worker.runtimes.kubernetes.api import KubernetesApi
from hypha_worker.runtimes.kubernetes.leases import LedgerInCluster
from support.worker import ALICE, HALF, TRAIN, WHOLE

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


@asynccontextmanager
async def pod(worker: Worker, directory: Path) -> AsyncIterator[LedgerInCluster]:
    """The ledger of a pod that has started on this disk."""
    cluster = KubernetesConfig(namespace="ns", worker="gpu", worker_uid="uid")
    ledger = Ledger(WHOLE, trio.current_time, duration_s=30)
    file = LedgerInCluster(directory / "leases.json", ledger, cast("KubernetesApi", worker), cluster, lease_s=30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.run)
        await file.restore()
        await file.save()
        yield file
        nursery.cancel_scope.cancel()


def held(file: LedgerInCluster, resources: Resources = HALF) -> Lease:
    lease = file.ledger.offer(ALICE, uuid4(), [TRAIN, TRAIN], resources)
    assert lease is not None
    file.ledger.renew(lease.id, ALICE)
    return lease


def disk(tmp_path: Path) -> Path:
    directory = tmp_path / str(uuid4())
    directory.mkdir()
    return directory


async def test_a_lease_is_in_the_worker_once_its_first_renewal_is_saved_and_later_ones_cost_nothing(
    tmp_path: Path,
) -> None:
    worker = Worker()
    async with pod(worker, tmp_path) as file:
        lease = held(file)
        before = worker.writes
        await file.save()
        assert [kept["id"] for kept in worker.node["leases"]] == [str(lease.id)]
        for _ in range(10):
            await trio.sleep(5)
            file.ledger.renew(lease.id, ALICE)
            await file.save()
        assert worker.writes == before + 1


async def test_the_next_pod_has_it_for_its_full_duration(tmp_path: Path) -> None:
    worker = Worker()
    async with pod(worker, disk(tmp_path)) as file:
        lease = held(file)
        await file.save()
        await trio.sleep(29)
    async with pod(worker, disk(tmp_path)) as file:
        (found,) = file.ledger.leases
        assert found.deadline == pytest.approx(trio.current_time() + 30, abs=0.1)
        assert found == lease.model_copy(update={"deadline": found.deadline, "state": "held", "executors": (TRAIN,)})
        file.ledger.assign(ALICE, TRAIN, uuid4())


@pytest.mark.parametrize("end", ["a job takes it", "it lapses"])
async def test_it_does_not_come_back_once(end: str, tmp_path: Path) -> None:
    worker = Worker()
    async with pod(worker, disk(tmp_path)) as file:
        held(file)
        await file.save()
        if end == "a job takes it":
            file.ledger.assign(ALICE, TRAIN, uuid4())
        else:
            await trio.sleep(31)
            file.ledger.expire()
        await file.save()
        await trio.sleep(0.5)
    async with pod(worker, disk(tmp_path)) as file:
        assert not file.ledger.leases


async def test_a_pod_that_is_restarted_believes_its_own_disk(tmp_path: Path) -> None:
    worker, directory = Worker(), disk(tmp_path)
    async with pod(worker, directory) as file:
        held(file)
        await file.save()
        worker.away = True
        await trio.sleep(31)
        file.ledger.expire()
        await file.save()
    worker.away = False
    async with pod(worker, directory) as file:
        assert not file.ledger.leases
        await trio.sleep(0.5)
        assert worker.node["leases"] == []


async def test_without_an_api_server_a_first_renewal_waits_a_moment_and_is_written_when_it_is_back(
    tmp_path: Path,
) -> None:
    worker = Worker()
    async with pod(worker, tmp_path) as file:
        worker.away = True
        lease, start = held(file), trio.current_time()
        await file.save()
        assert trio.current_time() == pytest.approx(start + 2, abs=0.1)
        await file.save()
        assert trio.current_time() == pytest.approx(start + 2, abs=0.1)
        worker.away = False
        await trio.sleep(11)
        assert [kept["id"] for kept in worker.node["leases"]] == [str(lease.id)]


async def test_many_leases_at_once_share_their_writes(tmp_path: Path) -> None:
    worker = Worker()
    async with pod(worker, tmp_path) as file, trio.open_nursery() as nursery:
        before = worker.writes
        for _ in range(50):
            held(file, Resources(cpu=0.01))
            nursery.start_soon(file.save)
    assert len(worker.node["leases"]) == 50
    assert worker.writes <= before + 2
