"""Whatever fault hits the operator, it ends with the same objects, without duplicates or orphans."""

import asyncio
import copy
import random
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from hypha_contracts.kinds import HYPHA_JOB, POD_DISRUPTION_BUDGET, WORKER, Kind, Manifest
from hypha_contracts.kubernetes_errors import ApiError
from hypha_operator.jobs.decision import UNREPORTED
from hypha_operator.machinery.audit import Audit
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.kinds import KNOWN, Key
from support.api_server import ApiServer
from support.manual_clock import ManualClock
from support.operating import KilledError, Operating, operating
from support.people import User, report
from support.resources import install_definitions, job_manifest, worker_manifest

pytestmark = pytest.mark.anyio


class LateClock(Clock):
    """The machine's clock set forward, so that the operator writes the status of a job that has just begun to wait."""

    def now(self) -> datetime:
        return super().now() + 1.5 * UNREPORTED


TASK = UUID("00000000-0000-4000-8000-000000000001")
DESIRED = {"offer": {"price": 7, "floor": 7}}


async def create_worker(operator: Operating, user: User) -> None:
    """Create a worker, whose node reports."""
    worker = user.apply(worker_manifest(operator.namespace))
    await operator.settle()
    if user.get({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gpu-pod"}}) is None:
        user.run_pod(operator)
    report(user, worker)
    await operator.settle()


async def change_worker(operator: Operating, user: User) -> None:
    """Give the worker a job, another offer and an exposed port."""
    network = worker_manifest("")["spec"]["network"] | {"expose": {"type": "NodePort"}}
    worker = user.apply(worker_manifest(operator.namespace, **DESIRED, network=network))
    job = job_manifest(operator.namespace, worker, TASK)
    if user.get(job) is None:
        user.apply(job, manager="hypha-worker")
    await operator.settle()


async def delete_worker(operator: Operating, user: User) -> None:
    """Delete the worker. Its node ends its job and reports the end."""
    worker = worker_manifest(operator.namespace)
    if (user.get(worker) or {"metadata": {"deletionTimestamp": ""}})["metadata"].get("deletionTimestamp") is None:
        user.delete(worker)
    await operator.observe()
    await operator.reconcile(Key(WORKER, operator.namespace, "gpu"))
    job = user.get(job_manifest(operator.namespace, worker, TASK))
    if job is not None:
        assert job["spec"]["cancel"]
        reported = {"type": "Reported", "status": "True", "reason": "EndReported", "message": ""}
        user.status(job, "hypha-worker", conditions=[reported | {"lastTransitionTime": "2026-01-01T00:00:00Z"}])
        user.status(job, "hypha-operator", phase="Failed")
    await operator.observe()
    await operator.reconcile(Key(WORKER, operator.namespace, "gpu"))


STEPS = (create_worker, change_worker, delete_worker)


async def run_steps(server: ApiServer, namespace: str, user: User, kill_at: int | None = None) -> list[Any]:
    """Perform all steps. A killed operator gets a successor, which repeats the step.

    Returns what there was after each step, and last the number of writes of the first operator.
    """
    seen: list[Any] = []
    operators, steps, writes = 0, list(STEPS), 0
    while steps:
        async with operating(server.kubeconfig, namespace, LateClock()) as operator:
            operators += 1
            operator.cluster.kill_at = kill_at if operators == 1 else None
            try:
                while steps:
                    await steps[0](operator, user)
                    seen.append(await operator.objects())
                    steps.pop(0)
            except KilledError:
                writes = len(operator.cluster.writes)
                continue
            writes = writes or len(operator.cluster.writes)
    assert operators == (1 if kill_at is None else 2), f"it makes only {writes} writes"
    return [*seen, writes]


@pytest.fixture(scope="module")
def undisturbed(api_server: ApiServer) -> list[Any]:
    """The objects after each step without any fault."""
    install_definitions(api_server)
    namespace = api_server.namespace()
    return asyncio.run(run_steps(api_server, namespace, User(api_server, namespace)))


WRITES = 27


@pytest.mark.parametrize("number", range(1, WRITES + 1))
async def test_an_operator_killed_at_any_write_ends_with_the_same_objects(served, namespace, user, undisturbed, number):
    """Kill the operator before each write."""
    *after_each_step, writes = undisturbed
    assert writes == WRITES, "another number of writes: change WRITES"
    *found, _ = await run_steps(served, namespace, user, kill_at=number)
    for one, other in zip(found, after_each_step, strict=True):
        assert_same(one, other)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert {name: found[name] for name in found if found[name] != expected[name]} == {}


def child(api_version: str, kind: str, name: str, **content: Any) -> Manifest:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **content}


RBAC = "rbac.authorization.k8s.io/v1"
CHILDREN = [
    child("v1", "ConfigMap", "gpu-controller", data={"worker.toml": "mine"}),
    child("v1", "ServiceAccount", "gpu-job", automountServiceAccountToken=True),
    child("v1", "Service", "gpu-connector", spec={"selector": {"mine": "yes"}}),
    child("apps/v1", "Deployment", "gpu-controller", spec={"replicas": 3}),
    child("networking.k8s.io/v1", "NetworkPolicy", "gpu-controller", spec={"ingress": [{}]}),
    child("policy/v1", "PodDisruptionBudget", "gpu-controller", spec={"maxUnavailable": 0}),
    child(RBAC, "Role", "gpu-controller", rules=[{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]),
    child(RBAC, "RoleBinding", "gpu-controller", subjects=[]),
]


def path_kind(manifest: Manifest) -> str:
    return str(manifest["kind"])


@pytest.mark.parametrize("manifest", CHILDREN, ids=path_kind)
async def test_a_child_that_is_edited_by_hand_is_restored(served, namespace, user, undisturbed, manifest):
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        user.merge(manifest, {key: value for key, value in manifest.items() if key != "metadata"})
        assert await operator.settle() == 1, operator.cluster.writes[-3:]
        assert_same(await operator.objects(), undisturbed[0])


@pytest.mark.parametrize("manifest", CHILDREN, ids=path_kind)
async def test_a_child_that_is_deleted_by_hand_is_recreated(served, namespace, user, undisturbed, manifest):
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        user.delete(manifest)
        await operator.settle()
        assert_same(await operator.objects(), undisturbed[0])


@pytest.mark.parametrize("manifest", CHILDREN, ids=path_kind)
async def test_a_child_that_lost_its_label_is_labelled_again(served, namespace, user, undisturbed, manifest):
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        user.merge(manifest, {"metadata": {"labels": {"hypha.space/worker": None}}})
        await operator.settle()
        user.merge(manifest, {key: value for key, value in manifest.items() if key != "metadata"})
        assert await operator.settle() == 1, operator.cluster.writes[-3:]
        assert_same(await operator.objects(), undisturbed[0])


async def test_a_deleted_network_policy_is_restored_and_an_ended_job_is_not(served, namespace, user):
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        await change_worker(operator, user)
        name = f"hypha-{TASK}"
        user.delete(child("networking.k8s.io/v1", "NetworkPolicy", name))
        await operator.settle()
        assert f"NetworkPolicy {name}" in await operator.objects()
        user.status(child("hypha.space/v1alpha1", "HyphaJob", name), "hypha-operator", phase="Failed")
        query = {"propagationPolicy": "Background"}
        with served.client() as client:
            client.delete(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}", params=query)
        await operator.reconcile_all()
        assert f"Job {name}" not in await operator.objects()


async def test_events_that_arrive_late_or_twice_or_out_of_order_cause_no_writes(served, namespace, user):
    async with operating(served.kubeconfig, namespace) as operator:
        heard: list[tuple[Kind, Manifest]] = []
        see = operator.watches.record

        def seen(kind: Kind, manifest: Manifest) -> None:
            heard.append((kind, copy.deepcopy(manifest)))
            see(kind, manifest)

        operator.watches.record = seen  # type: ignore[method-assign]
        await create_worker(operator, user)
        await change_worker(operator, user)
        disorder = heard * 2
        random.Random(7).shuffle(disorder)
        for kind, manifest in disorder:
            see(kind, manifest)
        assert operator.pending.keys == {}
        assert await operator.reconcile_all() == 0


async def test_an_operator_that_observes_its_own_writes_late_duplicates_nothing(served, namespace, user, undisturbed):
    async with operating(served.kubeconfig, namespace, LateClock(), knows=lambda _: False) as operator:
        await create_worker(operator, user)
        assert_same(await operator.objects(), undisturbed[0])
        await change_worker(operator, user)
        assert_same(await operator.objects(), undisturbed[1])
        assert await operator.reconcile_all() == 0


async def test_an_operator_with_an_empty_cache_duplicates_nothing(served, namespace, user, undisturbed):
    async with operating(served.kubeconfig, namespace, LateClock()) as operator:
        await create_worker(operator, user)
        await change_worker(operator, user)
    async with operating(served.kubeconfig, namespace, LateClock()) as stale:
        for kind in (WORKER, HYPHA_JOB):
            for manifest in await stale.cluster.find(kind, namespace):
                stale.watches.record(kind, manifest)
        for key in stale.pending.keys:
            with suppress(ApiError):
                await stale.reconcile(key)
        await stale.settle()
        assert_same(await stale.objects(), undisturbed[1])


async def test_two_operators_at_once_reach_the_same_state(served, namespace, user, undisturbed):
    kubeconfig = served.kubeconfig
    async with operating(kubeconfig, namespace) as one, operating(kubeconfig, namespace) as other:
        user.apply(worker_manifest(namespace))
        await asyncio.gather(one.settle(), other.settle(), return_exceptions=True)
        await create_worker(one, user)
        await asyncio.gather(one.reconcile_all(), other.reconcile_all(), return_exceptions=True)
        await other.settle()
        assert_same(await one.objects(), undisturbed[0])


async def test_the_audit_finds_a_deletion_that_no_watch_showed(served, namespace, user, undisturbed):
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        user.delete(child("apps/v1", "Deployment", "gpu-controller"))
        audit = Audit(operator.store, operator.watches, operator.cluster, Clock(), (namespace,))
        for kind in KNOWN:
            await audit.check(kind, namespace)
        assert list(operator.pending.keys) == [Key(WORKER, namespace, "gpu")]
        await operator.settle()
        assert_same(await operator.objects(), undisturbed[0])


async def test_the_audit_shows_changes_of_a_kind_without_a_watch(served, namespace, user, undisturbed):
    budget = child("policy/v1", "PodDisruptionBudget", "gpu-controller", spec={"maxUnavailable": 0})
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        audit = Audit(operator.store, operator.watches, operator.cluster, ManualClock(), (namespace,))
        await audit.check(POD_DISRUPTION_BUDGET, namespace)
        assert not operator.pending.keys, "nothing has changed"
        user.merge(budget, {"spec": budget["spec"]})
        await audit.check(POD_DISRUPTION_BUDGET, namespace)
        assert list(operator.pending.keys) == [Key(WORKER, namespace, "gpu")]
        assert audit.lag_s() == 0, "there is no watch that could be late"
        await operator.reconcile_all()
        assert_same(await operator.objects(), undisturbed[0])


async def test_a_budget_that_was_removed_returns_as_soon_as_the_spec_asks_for_it(served, namespace, user):
    async with operating(served.kubeconfig, namespace) as operator:
        await create_worker(operator, user)
        for disruption, budgets in (("Allow", {"gpu-controller"}), ("Avoid", {"gpu-controller", "gpu-job"})):
            user.apply(worker_manifest(namespace, jobs={"disruption": disruption}))
            for worker in await operator.cluster.find(WORKER, namespace):
                operator.watches.record(WORKER, worker)
            await operator.reconcile(Key(WORKER, namespace, "gpu"))
            found = await operator.cluster.find(POD_DISRUPTION_BUDGET, namespace)
            assert {budget["metadata"]["name"] for budget in found} == budgets, disruption


async def test_a_silent_watch_raises_the_lag_until_it_shows_events_again(served, namespace, user):
    async with operating(served.kubeconfig, namespace) as operator:
        user.apply(worker_manifest(namespace))
        await operator.observe()
        clock = ManualClock()
        audit = Audit(operator.store, operator.watches, operator.cluster, clock, (namespace,))
        user.apply(worker_manifest(namespace, suspend=True))
        await audit.check(WORKER, namespace)
        await clock.pass_(90)
        assert audit.lag_s() == 90
        await audit.check(WORKER, namespace)
        assert audit.lag_s() == 90
        await operator.observe()
        assert audit.lag_s() == 0


async def test_a_watch_that_shows_only_the_deletion_of_an_object_has_no_lag(served, namespace, user):
    async with operating(served.kubeconfig, namespace) as operator:
        clock = ManualClock()
        audit = Audit(operator.store, operator.watches, operator.cluster, clock, (namespace,))
        user.apply(worker_manifest(namespace))
        await audit.check(WORKER, namespace)
        (shown,) = await operator.cluster.find(WORKER, namespace)
        operator.watches.record_deletion(WORKER, shown)
        await clock.pass_(90)
        assert audit.lag_s() == 0
