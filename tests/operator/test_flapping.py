"""Pods and nodes whose state changes without end. The operator's writes and log lines about them are bounded."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hypha_contracts.kinds import HYPHA_JOB, POD, WORKER
from hypha_operator.machinery.queue import MAX_BURST, MIN_INTERVAL_S, WorkQueue
from hypha_operator.machinery.watches import Watches
from support.api_server import ApiServer
from support.job_world import Clock, JobWorld, open_job_world
from support.operating import Operating, operating
from support.people import report
from support.resources import GATEWAY, install_definitions, worker_manifest

pytestmark = pytest.mark.anyio
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
CHANGES = 60
SECONDS = 30.0
MOST = MAX_BURST + SECONDS / MIN_INTERVAL_S
"""The most reconciles of one object in this time."""


class SteppedClock(Clock):
    """A clock that only tests advance."""

    def monotonic(self) -> float:
        return self.ahead_s


class Working:
    """An operator whose own queue reconciles, on a clock that a test can advance."""

    def __init__(self, operator: Operating, clock: Clock) -> None:
        self._operator, self._clock = operator, clock
        self._queue = WorkQueue(operator.reconcile, clock, lambda *_: None)
        operator.watches = Watches(operator.store, self._queue)

    async def run(self) -> None:
        await self._queue.run()

    async def rest(self) -> None:
        """Let the operator do all that it may do now, then advance the clock to the next change."""
        await asyncio.sleep(0)
        while self._queue.waiting or self._queue._running:  # noqa: ASYNC110 - the queue does not say when it is idle
            await asyncio.sleep(0.001)
        self._clock.ahead_s += SECONDS / CHANGES

    def status_writes(self, kind: str) -> int:
        return sum(f"/{kind}/" in write and write.endswith("/status") for write in self._operator.cluster.writes)


@asynccontextmanager
async def working(operator: Operating, clock: Clock) -> AsyncIterator[Working]:
    work = Working(operator, clock)
    task = asyncio.create_task(work.run())
    try:
        yield work
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world(control_plane: ApiServer) -> AsyncIterator[JobWorld]:
    install_definitions(control_plane)
    async with open_job_world(control_plane) as world:
        world.clock = SteppedClock()
        await world.restart()
        world.make_job()
        await world.until(lambda: world.pods)
        yield world


async def crash_bridge(world: JobWorld, operator: Operating, work: Working) -> None:
    """Let the job's bridge crash again and again, and the operator observe each crash."""
    path = world.path(POD, world.pods[0]["metadata"]["name"], "status")
    with world.server.client() as client:
        for number in range(1, CHANGES + 1):
            answer = client.patch(path, json={"status": crashed(number)}, headers=MERGE_PATCH).raise_for_status()
            operator.watches.record(POD, {"apiVersion": POD.api_version, "kind": POD.name, **answer.json()})
            await work.rest()


def crashed(number: int) -> dict[str, Any]:
    end = {"exitCode": 1, "reason": "Error", "message": f"crash {number}"}
    bridge = {"name": "bridge", "image": "x", "imageID": "", "ready": False, "restartCount": number}
    state = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": end}}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {"conditions": [scheduled], "initContainerStatuses": [bridge | state]}


async def test_a_job_whose_bridge_crashes_without_end_costs_few_status_writes_and_shows_the_last_crash(world):
    operator = world.operating
    written = len(operator.cluster.writes)
    async with working(operator, world.clock) as work:
        await crash_bridge(world, operator, work)
        del operator.cluster.writes[:written]
        assert MAX_BURST <= work.status_writes(HYPHA_JOB.plural) <= MOST < CHANGES
        while world.status.get("lastLines") != [f"crash {CHANGES}"]:
            await work.rest()


async def test_a_job_whose_status_is_refused_without_end_costs_few_log_lines(world, caplog):
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{world.namespace}"
    rule = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]}
    world.server.post(f"{rbac}/roles", {"metadata": {"name": "reader"}, "rules": [rule]})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"reader-{world.namespace}"}
    binding = {"metadata": {"name": "reader"}, "roleRef": role, "subjects": [subject]}
    world.server.post(f"{rbac}/rolebindings", binding)
    kubeconfig = world.server.user_kubeconfig(subject["name"])
    async with operating(kubeconfig, world.namespace, world.clock) as operator:
        await operator.observe()
        with caplog.at_level(logging.INFO, "hypha_operator"):
            async with working(operator, world.clock) as work:
                await crash_bridge(world, operator, work)
                assert MAX_BURST <= len(caplog.records) <= MOST < CHANGES
    assert {record.levelname for record in caplog.records} == {"WARNING"}


async def test_a_worker_whose_node_reports_other_gateways_without_end_costs_few_status_writes(served, namespace, user):
    worker, clock = user.apply(worker_manifest(namespace)), SteppedClock()
    async with operating(served.kubeconfig, namespace, clock) as operator:
        await operator.settle()
        user.run_pod(operator)
        report(user, worker)
        await operator.settle()
        operator.cluster.writes.clear()
        async with working(operator, clock) as work:
            for number in range(CHANGES):
                report(user, worker, gateways=[f"{GATEWAY}{number}"])
                operator.watches.record(WORKER, user.get(worker))
                await work.rest()
            assert MAX_BURST <= work.status_writes(WORKER.plural) <= MOST < CHANGES
            while f"{GATEWAY}{CHANGES - 1}" not in str(user.get(worker)["status"]["conditions"]):
                await work.rest()
