"""The preparation of `helm uninstall` on workers that change at the same time, on the real API server."""

import asyncio
from typing import Any

import pytest

from hypha_contracts.kinds import LEASE, WORKER, Manifest
from hypha_contracts.names import DRAIN_FINALIZER
from hypha_operator.machinery.clock import Clock
from hypha_operator.workers.uninstall import UninstallError, uninstall
from support.api_server import ApiServer
from support.operating import Operating, operating
from support.people import User
from support.resources import worker_manifest

pytestmark = pytest.mark.anyio


class Hurried(Clock):
    """A clock on which nothing waits."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def held_worker(namespace: str) -> Manifest:
    manifest = worker_manifest(namespace)
    manifest["metadata"]["finalizers"] = [DRAIN_FINALIZER]
    return manifest


def before_each_merge(monkeypatch: pytest.MonkeyPatch, operator: Operating, *changes: Any) -> None:
    """Make one of these changes before each of the operator's merge patches."""
    merge, left = operator.cluster.merge, list(changes)

    async def changed_first(manifest: Manifest) -> Manifest:
        if left:
            left.pop(0)()
        return await merge(manifest)

    monkeypatch.setattr(operator.cluster, "merge", changed_first)


async def run_uninstall(operator: Operating, namespace: str) -> None:
    await uninstall(operator.cluster, Hurried(), f"{namespace}/release", (namespace,))


async def test_a_worker_that_changes_during_an_uninstall_is_released(
    served: ApiServer, namespace: str, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = user.apply(held_worker(namespace))
    async with operating(served.kubeconfig, namespace) as operator:

        def report() -> None:
            user.status(worker, "hypha-worker", node={"activeJobs": len(operator.cluster.writes)})

        before_each_merge(monkeypatch, operator, report, report)
        await run_uninstall(operator, namespace)
        (left,) = await operator.cluster.find(WORKER, namespace)
        assert "finalizers" not in left["metadata"]
        assert await operator.cluster.find(LEASE, namespace) == []


async def test_a_worker_that_is_deleted_during_an_uninstall_does_not_block_it(
    served: ApiServer, namespace: str, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = user.apply(held_worker(namespace))
    async with operating(served.kubeconfig, namespace) as operator:

        def delete() -> None:
            user.delete(worker)
            user.merge(worker, {"metadata": {"finalizers": None}})

        before_each_merge(monkeypatch, operator, delete)
        await run_uninstall(operator, namespace)
        assert await operator.cluster.find(LEASE, namespace) == []


async def test_an_uninstall_names_a_worker_that_never_stops_changing(
    served: ApiServer, namespace: str, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = user.apply(held_worker(namespace))
    async with operating(served.kubeconfig, namespace) as operator:

        def change() -> None:
            user.merge(worker, {"metadata": {"annotations": {"example.org/n": str(len(operator.cluster.writes))}}})

        before_each_merge(monkeypatch, operator, *[change] * 100)
        with pytest.raises(UninstallError, match=f"HyphaWorker {namespace}/gpu changes all the time"):
            await run_uninstall(operator, namespace)
