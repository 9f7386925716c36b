"""HyphaJobs on a real control plane with simulated nodes."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from e2e.cluster.kwok import MISSING_IMAGE, kwok, pod_placement
from hypha_contracts import kinds
from hypha_contracts.kinds import EVENT, HYPHA_JOB, JOB, NETWORK_POLICY, POD, RESOURCE_CLAIM_TEMPLATE, WORKER
from hypha_contracts.kubernetes_errors import Conflict, Invalid
from hypha_contracts.object_status import find_condition
from hypha_operator.jobs import decision, reconciler
from hypha_operator.machinery.cluster import MAX_EVENTS_PER_MINUTE, Cluster
from support.api_server import ApiServer
from support.job_world import JobWorld, open_job_world
from support.operating import KilledError
from support.operator_objects import ROOM
from support.operator_objects import WORKER as WORKER_NAME
from support.resources import install_definitions
from support.waiting import until
from support.webhooks import broken_webhook, patched, webhook

pytestmark = pytest.mark.anyio
LEASE = {"cpu": 1.0, "memory": 1.0, "storage": 1.0, "gpu": 0.0}


@pytest.fixture(scope="module")
def placement(control_plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A pod template that selects the nodes of this module."""
    install_definitions(control_plane)
    with kwok(control_plane, tmp_path_factory.mktemp("kwok"), nodes=2, gpus=2) as nodes:
        yield {"spec": pod_placement(nodes)}


@pytest.fixture
async def world(control_plane: ApiServer, placement: dict[str, Any]) -> AsyncIterator[JobWorld]:
    async with open_job_world(control_plane, executor={"template": placement}) as world:
        yield world


async def test_a_job_runs_ends_and_is_removed_once_its_end_is_reported(world: JobWorld) -> None:
    world.make_job(resources=LEASE | {"gpu": 60.0}, ttlSecondsAfterFinished=600)
    await world.until_phase("Running")
    pod = world.pods[0]
    assert (world.status["podUid"], world.status["nodeName"]) == (pod["metadata"]["uid"], pod["spec"]["nodeName"])
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"

    world.end_pod()
    await world.until_phase("Succeeded")
    assert world.status["reason"] == "Completed"
    reported = {"type": "Reported", "status": "True", "reason": "EndReported", "message": ""}
    reported["lastTransitionTime"] = datetime.now(UTC).isoformat(timespec="seconds")
    conditions = [*world.status["conditions"], reported]
    world.call("PATCH", world.path(HYPHA_JOB, world.name, "status"), {"status": {"conditions": conditions}})
    left_s = await world.step()
    assert left_s is not None
    assert 590 < left_s <= 600
    world.clock.ahead_s += 601
    assert await world.step() is None
    await world.until(lambda: not world.items(HYPHA_JOB) + world.items(JOB) + world.items(NETWORK_POLICY) + world.pods)
    others_held_the_devices = {("Warning", "Unschedulable"), ("Normal", "ExecutorRuns")}  # all tests share the nodes
    assert set(world.events()) - others_held_the_devices == {("Normal", "Completed")}


async def test_an_ended_hypha_job_outlives_its_pod_and_keeps_its_last_lines(
    world: JobWorld,
) -> None:
    world.call("PATCH", world.path(WORKER, WORKER_NAME), {"spec": {"jobs": {"podTtlSecondsAfterFinished": 60}}})
    world.make_job(ttlSecondsAfterFinished=600)
    await world.until_phase("Running")
    world.end_pod(message="round 7\nthe loss is 0.25")
    await world.until_phase("Succeeded")
    left_s = await world.step()
    assert left_s is not None
    assert 50 < left_s <= 60
    assert world.pods
    world.clock.ahead_s += 61
    await world.until(lambda: not world.items(JOB) + world.pods)
    assert (world.status["phase"], world.status["lastLines"]) == ("Succeeded", ["round 7", "the loss is 0.25"])
    world.clock.ahead_s += 3600
    written = len(world.writes)
    await world.step()
    assert world.writes[written:] == [], "the end is not reported yet, so the HyphaJob stays"


async def test_kubectl_wait_for_a_condition_does_not_wait_for_a_renewal(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    world.call("PATCH", world.path(HYPHA_JOB, world.name), {"spec": {"lease": {"deadline": world.deadline(60)}}})
    await world.step()
    wait = ("wait", "hyphajob", world.name, f"--namespace={world.namespace}", "--timeout=0", "--for=condition=Ready")
    assert "condition met" in world.server.kubectl(*wait)


async def test_a_job_whose_end_is_not_reported_is_kept_a_day_longer(world: JobWorld) -> None:
    world.make_job(ttlSecondsAfterFinished=0, executor={"class": "train", "name": "none"})
    await world.until_phase("Failed")
    left_s = await world.step()
    assert left_s is not None
    assert 86_000 < left_s <= 86_400


async def test_the_oldest_ended_jobs_are_deleted_once_there_are_too_many(
    world: JobWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (decision, reconciler):
        monkeypatch.setattr(module, "MAX_ENDED_PER_SCHEDULER", 2)
    names = []
    for number in range(4):
        world.make_job(task_id=UUID(int=number), ttlSecondsAfterFinished=600)
        names.append(world.name)
        status = {"phase": "Failed", "completionTime": f"2036-01-01T00:00:0{number}Z"}
        reported = {"type": "Reported", "status": "True", "reason": "Test", "message": ""}
        reported["lastTransitionTime"] = "2036-01-01T00:00:00Z"
        path = world.path(HYPHA_JOB, world.name) + "/status"
        world.call("PATCH", path, {"status": status | {"conditions": [reported]}})
    await world.step()
    assert [job["metadata"]["name"] for job in world.items(HYPHA_JOB)] == names[2:]


async def test_a_conflict_without_a_job_of_another_owner_is_no_end(
    world: JobWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conflict(*_: Any) -> None:
        raise Conflict("POST", 409, "Conflict", "the quota changed at this moment")

    world.make_job()
    with monkeypatch.context() as patch:
        patch.setattr(Cluster, "create", conflict)
        with pytest.raises(Conflict):
            await world.step()
    assert "reason" not in world.status
    await world.until_phase("Running")


async def test_an_ended_job_is_never_created_again(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    world.end_pod(exit_code=1, message="ValueError: bad slice")
    await world.until_phase("Failed")
    assert (world.status["reason"], world.status["lastLines"]) == ("ExecutorFailed", ["ValueError: bad slice"])
    world.call("DELETE", world.path(JOB, world.name), {"propagationPolicy": "Background"})
    await world.until(lambda: not world.items(JOB))
    written = len(world.writes)
    for _ in range(3):
        await world.step()
    assert world.writes[written:] == []
    assert world.items(JOB) == []


async def test_the_network_policy_is_created_before_the_job(world: JobWorld) -> None:
    world.make_job()
    await world.step()
    assert world.writes == ["POST networkpolicies", "POST jobs"]


async def test_nothing_is_written_while_nothing_changes(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    written = len(world.writes)
    for _ in range(5):
        world.call("PATCH", world.path(HYPHA_JOB, world.name), {"spec": {"lease": {"deadline": world.deadline(60)}}})
        world.clock.ahead_s += 1
        await world.step()
    assert world.writes[written:] == []


async def test_a_cancelled_job_ends_when_its_pod_is_gone(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    world.cancel("the scheduler said so")
    await world.until_phase("Failed")
    assert world.pods == []
    assert world.items(JOB) == []
    assert world.status["reason"] == "Cancelled"
    assert ("Normal", "Cancelled") in world.events()


async def test_a_job_that_is_cancelled_before_anything_was_created_creates_nothing(world: JobWorld) -> None:
    world.make_job(cancel={"reason": "never mind"})
    await world.step()
    assert (world.status["phase"], world.status["reason"]) == ("Failed", "Cancelled")
    assert world.writes == ["PATCH hyphajobs"]


async def test_a_job_that_fits_on_no_node_ends_after_a_minute(world: JobWorld) -> None:
    world.make_job(resources=LEASE | {"gpu": 200.0})
    await world.until(lambda: world.status.get("reason") == "Unschedulable")
    assert world.status["phase"] == "Pending"
    world.clock.ahead_s += 61
    await world.until_phase("Failed")
    message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Ready")
    assert "Insufficient nvidia.com/gpu" in message
    assert world.pods == []


async def test_a_job_waits_for_an_autoscaled_node_for_the_start_timeout_of_the_worker(world: JobWorld) -> None:
    patience = {"spec": {"jobs": {"startPatienceSeconds": 600}}}
    world.call("PATCH", world.path(WORKER, WORKER_NAME), patience)
    world.make_job(resources=LEASE | {"gpu": 200.0})
    await world.until(lambda: world.status.get("reason") == "Unschedulable")
    world.clock.ahead_s += 590
    await world.step()
    assert world.status["phase"] == "Pending"
    world.clock.ahead_s += 11
    await world.until_phase("Failed")


async def test_an_exceeded_quota_is_reported_and_ends_the_job(world: JobWorld) -> None:
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"limits.memory": "512Mi"}}}
    world.call("POST", f"/api/v1/namespaces/{world.namespace}/resourcequotas", quota)
    world.make_job(resources=LEASE)
    await world.step()
    world.clock.ahead_s += 11
    await world.until(lambda: world.status.get("reason") == "QuotaExceeded")
    message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Ready")
    assert "exceeded quota: small" in message
    assert "Raise the ResourceQuota" in message
    world.clock.ahead_s += 61
    await world.until_phase("Failed")
    assert (world.status["reason"], world.items(JOB)) == ("QuotaExceeded", [])


async def test_an_exceeded_quota_of_jobs_is_reported(world: JobWorld) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    world.call("POST", f"/api/v1/namespaces/{world.namespace}/resourcequotas", quota)
    world.make_job()

    await world.until(lambda: world.status.get("reason") == "QuotaExceeded")
    world.call("DELETE", f"/api/v1/namespaces/{world.namespace}/resourcequotas/none")
    await world.until_phase("Running")


async def test_a_missing_service_account_is_reported_with_the_message_of_admission(world: JobWorld) -> None:
    world.call("DELETE", f"/api/v1/namespaces/{world.namespace}/serviceaccounts/{WORKER_NAME}-job")
    world.make_job()
    await world.step()
    world.clock.ahead_s += 11
    await world.until(lambda: world.status.get("reason") == "AdmissionRefused")
    world.server.token(world.namespace, f"{WORKER_NAME}-job")
    await world.until_phase("Running", timeout_s=60)


async def test_a_template_that_breaks_isolation_ends_the_job_at_once(
    control_plane: ApiServer, placement: dict[str, Any]
) -> None:
    async with open_job_world(control_plane, executor={"template": {"spec": {"hostNetwork": True}}}) as world:
        world.make_job()
        await world.step()
        assert (world.status["phase"], world.status["reason"]) == ("Failed", "InvalidTemplate")
        assert "template.spec.hostNetwork" in world.status["conditions"][0]["message"]
        assert world.items(JOB) == []


@pytest.mark.parametrize(
    ("spec", "named"),
    [({"nodeSelector": {"not a label!": "x"}}, "nodeSelector"), ({"affinity": {"nodeAffinityy": {}}}, "nodeAffinityy")],
    ids=["value", "field"],
)
async def test_a_template_that_the_api_server_refuses_ends_the_job_with_its_message(
    control_plane: ApiServer, placement: dict[str, Any], spec: dict[str, Any], named: str
) -> None:
    async with open_job_world(control_plane, executor={"template": {"spec": spec}}) as world:
        world.make_job()
        await world.step()
        assert (world.status["phase"], world.status["reason"]) == ("Failed", "InvalidTemplate")
        message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Ready")
        assert named in message


async def test_a_cluster_without_claims_of_devices_ends_the_job_with_a_remedy(
    control_plane: ApiServer, placement: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulate a cluster before Kubernetes 1.34 with an API version that no cluster serves."""
    unserved = RESOURCE_CLAIM_TEMPLATE._replace(api_version="resource.k8s.io/v0")
    monkeypatch.setitem(kinds._BY_NAME, RESOURCE_CLAIM_TEMPLATE[:2], unserved)
    gpu = {"deviceClassName": "gpu.example.org", "count": 2, "memory": "48Gi"}
    async with open_job_world(control_plane, resources=ROOM | {"gpu": gpu}) as world:
        world.make_job(resources=LEASE | {"gpu": 48.0})
        await world.step()
        assert (world.status["phase"], world.status["reason"]) == ("Failed", "InvalidTemplate")
        assert "gpu.resourceName" in world.status["conditions"][0]["message"]
        assert world.items(JOB) == []


async def test_a_job_keeps_its_claim_of_devices_if_the_worker_changes_before_its_job_is_created(
    control_plane: ApiServer, placement: dict[str, Any]
) -> None:
    gpu = {"deviceClassName": "gpu.example.org", "count": 2, "memory": "48Gi"}
    async with open_job_world(control_plane, resources=ROOM | {"gpu": gpu}) as world:
        quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
        world.call("POST", f"/api/v1/namespaces/{world.namespace}/resourcequotas", quota)
        world.make_job(resources=LEASE | {"gpu": 48.0})
        await world.until(lambda: world.status.get("reason") == "QuotaExceeded")
        changed = {"spec": {"resources": {"gpu": {"deviceClassName": "other.example.org"}}}}
        world.call("PATCH", world.path(WORKER, WORKER_NAME), changed)
        await world.step()
        assert (world.status["phase"], world.status["reason"]) == ("Pending", "QuotaExceeded")
        world.call("DELETE", f"/api/v1/namespaces/{world.namespace}/resourcequotas/none")
        await world.until(lambda: world.items(JOB))
        (template,) = world.items(RESOURCE_CLAIM_TEMPLATE)
        (request,) = template["spec"]["spec"]["devices"]["requests"]
        assert request["exactly"]["deviceClassName"] == "gpu.example.org"


async def test_a_webhook_that_does_not_answer_is_reported_and_ends_the_job(world: JobWorld) -> None:
    with broken_webhook(world.server, world.namespace):
        world.make_job()
        await world.step()
        assert (world.status["phase"], world.status["reason"]) == ("Pending", "AdmissionRefused")
        assert "broken.example.org" in world.status["conditions"][0]["message"]
        world.clock.ahead_s += 61
        await world.until_phase("Failed")
    assert world.status["reason"] == "AdmissionRefused"


async def test_a_job_into_whose_pod_a_mesh_injected_a_container_ends_with_executor_and_bridge(
    world: JobWorld, tmp_path: Path
) -> None:
    def inject(_: dict[str, Any]) -> dict[str, Any]:
        return patched({"op": "add", "path": "/spec/containers/-", "value": {"name": "istio-proxy", "image": "mesh:1"}})

    with webhook(world.server, world.namespace, "mutating", "pods", inject, tmp_path / "pki"):
        world.make_job()
        await world.until_phase("Running")
    [pod] = world.pods
    assert [container["name"] for container in pod["spec"]["containers"]] == ["executor", "istio-proxy"]
    path = world.path(POD, pod["metadata"]["name"])
    kept = [*pod["metadata"].get("finalizers", []), "example.org/kubelet"]  # until this test has written its end
    world.call("PATCH", path, {"metadata": {"finalizers": kept}})

    def write(bridge: dict[str, Any]) -> None:
        common = {"image": "x", "imageID": "", "ready": False, "restartCount": 0}
        mesh = {"name": "istio-proxy", "state": {"running": {}}, **common}
        ended = {"exitCode": 0, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}
        executor = {"name": "executor", "state": {"terminated": ended}, **common}
        bridges = [{"name": "bridge", "state": bridge, **common}]
        status = {"initContainerStatuses": bridges, "containerStatuses": [executor, mesh], "phase": "Running"}
        world.call("PATCH", f"{path}/status", {"status": status})

    write({"running": {}})
    await world.until(lambda: "deletionTimestamp" in world.pods[0]["metadata"])
    assert (world.status["phase"], world.status["reason"]) == ("Running", "DeliveringResults")
    write({"terminated": {"exitCode": 0}})
    await world.until(lambda: world.status["reason"] == "Completed")
    assert world.status["phase"] == "Running", "its pod is still there"
    await world.restart()
    left = [name for name in world.pods[0]["metadata"]["finalizers"] if name != "example.org/kubelet"]
    world.call("PATCH", path, {"metadata": {"finalizers": left}})
    await world.until_phase("Succeeded")
    assert (world.pods, world.items(JOB)) == ([], [])


async def test_a_deleted_job_is_not_created_again(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    world.call("DELETE", world.path(JOB, world.name), {"propagationPolicy": "Background"})
    await world.until_phase("Failed")
    assert (world.status["reason"], world.items(JOB), world.pods) == ("JobDeleted", [], [])


async def test_a_deleted_pod_ends_the_job(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    world.call("DELETE", world.path(POD, world.pods[0]["metadata"]["name"]))
    await world.until_phase("Failed")
    assert world.status["reason"] in ("JobDeleted", "ExecutorFailed")
    assert world.pods == []


@pytest.fixture
async def unstarted(control_plane: ApiServer, placement: dict[str, Any]) -> AsyncIterator[JobWorld]:
    """A job whose executor's image is pulled and pulled."""
    executor = {"template": placement, "image": MISSING_IMAGE}
    settings = {"jobs": {"startPatienceSeconds": 3600}}
    async with open_job_world(control_plane, executor=executor, **settings) as world:
        world.make_job()
        await world.until(lambda: world.status.get("reason") == "ImagePull")
        yield world


async def replaced(world: JobWorld, before: dict[str, Any]) -> None:
    """Wait until the job has another Job with another pod, which has not started."""

    def is_replaced() -> bool:
        others = [pod for pod in world.pods if pod["metadata"]["uid"] != before["metadata"]["uid"]]
        return len(others) == 1 and world.status.get("podUid") == others[0]["metadata"]["uid"]

    await world.until(is_replaced)
    assert world.status["phase"] in ("Pending", "Starting")
    assert "startTime" not in world.status
    assert len(world.items(JOB)) == 1


async def test_a_pod_that_is_evicted_before_its_executor_started_is_replaced(unstarted: JobWorld) -> None:
    (pod,) = unstarted.pods
    name = pod["metadata"]["name"]
    about = {"name": name, "namespace": unstarted.namespace}
    unstarted.call(
        "POST",
        unstarted.path(POD, name, "eviction"),
        {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about},
    )
    await replaced(unstarted, pod)
    assert ("Warning", "Evicted") in unstarted.events()


async def test_a_pod_that_its_node_rejects_is_replaced(unstarted: JobWorld) -> None:
    (pod,) = unstarted.pods
    rejected = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "Allocate failed"}
    unstarted.call("PATCH", unstarted.path(POD, pod["metadata"]["name"], "status"), {"status": rejected})
    unstarted.clock.ahead_s += 11
    await replaced(unstarted, pod)


async def test_a_job_that_is_deleted_before_its_executor_started_is_created_again(unstarted: JobWorld) -> None:
    (pod,) = unstarted.pods
    unstarted.call("DELETE", unstarted.path(JOB, unstarted.name), {"propagationPolicy": "Background"})
    await replaced(unstarted, pod)


async def test_an_operator_that_is_killed_while_it_replaces_a_pod_replaces_it_all_the_same(unstarted: JobWorld) -> None:
    for write in (2, 3):  # the first one deletes the Job
        (pod,) = unstarted.pods
        cluster = unstarted.operating.cluster
        cluster.kill_at = len(cluster.writes) + write
        unstarted.call("DELETE", unstarted.path(POD, pod["metadata"]["name"]))
        try:
            await replaced(unstarted, pod)
        except KilledError:
            await unstarted.restart()
            await replaced(unstarted, pod)


async def test_an_evicted_pod_ends_the_job(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    name = world.pods[0]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": world.namespace}}
    world.call("POST", world.path(POD, name, "eviction"), eviction)
    await world.until_phase("Failed")
    assert world.status["reason"] == "Evicted"


async def test_a_job_outlives_its_deadline_until_the_api_server_has_confirmed_it_twice(world: JobWorld) -> None:
    world.make_job(lease_s=10)
    await world.until_phase("Running")
    world.clock.ahead_s += 41
    await world.step()
    assert world.status["phase"] == "Running", "asked once"
    world.clock.ahead_s += 31
    await world.until_phase("Failed")
    assert (world.status["reason"], world.pods) == ("LeaseLost", [])


async def test_a_renewal_that_no_watch_showed_keeps_the_job(world: JobWorld) -> None:
    world.make_job(lease_s=10)
    await world.until_phase("Running")
    world.clock.ahead_s += 41
    await world.step()
    world.clock.ahead_s += 31
    world.call("PATCH", world.path(HYPHA_JOB, world.name), {"spec": {"lease": {"deadline": world.deadline(60)}}})
    await world.step(observe=False)
    await world.step()
    assert world.status["phase"] == "Running"


async def test_a_restarted_operator_gives_the_controller_time_to_return(world: JobWorld) -> None:
    world.make_job(lease_s=-3600)
    await world.until_phase("Running")
    await world.restart()
    await world.step()
    world.clock.ahead_s += 29
    await world.step()
    assert world.status["phase"] == "Running"


async def test_a_job_whose_worker_is_gone_ends(world: JobWorld) -> None:
    world.make_job()
    await world.until_phase("Running")
    world.call("DELETE", world.path(WORKER, WORKER_NAME))
    await world.until_phase("Failed")
    assert (world.status["reason"], world.pods) == ("WorkerGone", [])


@pytest.mark.parametrize("harm", ["edited", "deleted"])
async def test_an_edited_or_deleted_network_policy_is_restored(world: JobWorld, harm: str) -> None:
    world.make_job()
    await world.until_phase("Running")
    before = world.items(NETWORK_POLICY)[0]["spec"]
    if harm == "deleted":
        world.call("DELETE", world.path(NETWORK_POLICY, world.name))
    else:
        world.call("PATCH", world.path(NETWORK_POLICY, world.name), {"spec": {"ingress": [{}]}})
    await world.step()
    assert [policy["spec"] for policy in world.items(NETWORK_POLICY)] == [before]


WITHOUT_MATCH_LABELS = {"spec": {"jobs": {"egress": [{"to": [{"podSelector": {"app": "mirror"}}]}]}}}


async def test_the_status_names_the_pod_even_if_its_network_policy_cannot_be_restored(world: JobWorld) -> None:
    world.make_job()
    await world.step()
    world.call("PATCH", world.path(WORKER, WORKER_NAME), WITHOUT_MATCH_LABELS)
    until(lambda: any(pod["status"]["phase"] == "Running" for pod in world.pods))
    with pytest.raises(Invalid, match="podSelector"):
        await world.step()
    assert (world.status["phase"], world.status["podUid"]) == ("Running", world.pods[0]["metadata"]["uid"])


async def test_a_job_whose_network_policy_is_refused_ends_with_the_setting_to_correct(world: JobWorld) -> None:
    world.call("PATCH", world.path(WORKER, WORKER_NAME), WITHOUT_MATCH_LABELS)
    world.make_job()
    await world.until_phase("Failed")
    assert world.status["reason"] == "InvalidTemplate"
    message = find_condition({"status": world.status}, "Ready")["message"]
    assert "the API server refuses the NetworkPolicy" in message
    assert "Correct `jobs.egress`" in message
    assert world.items(JOB) == []


async def test_a_job_that_the_store_does_not_know_is_neither_duplicated_nor_refused(world: JobWorld) -> None:
    world.make_job()
    await world.step()
    made = world.items(JOB)
    await world.restart()
    await world.operating.observe()
    seen = world.operating.store.get(JOB, world.namespace, world.name)
    assert seen
    world.operating.store.remove(JOB, seen)
    await world.step(observe=False)
    assert [job["metadata"]["uid"] for job in world.items(JOB)] == [job["metadata"]["uid"] for job in made]
    assert world.status["phase"] != "Failed"


async def _until_phase(world: JobWorld, phase: str) -> int:
    """Wait for a phase. A killed operator gets a successor. Return how many operators were killed."""
    killed = 0
    while world.status.get("phase") != phase:
        try:
            await world.until_phase(phase)
        except KilledError:
            killed += 1
            await world.restart()
    return killed


WRITES = 7
"""Policy, Job, status thrice (running, ending, ended), an Event that the last two share, a deletion."""


@pytest.mark.parametrize("write", range(1, WRITES + 1))
async def test_an_operator_that_is_killed_before_any_write_reaches_the_same_end(world: JobWorld, write: int) -> None:
    world.operating.cluster.kill_at = write
    world.make_job()
    killed = await _until_phase(world, "Running")
    world.cancel("enough")
    killed += await _until_phase(world, "Failed")
    assert (killed, world.status["reason"], world.items(JOB), world.pods) == (1, "Cancelled", [], [])
    assert len(world.items(NETWORK_POLICY)) == 1


async def test_an_object_gets_a_limited_number_of_events_and_their_text_is_escaped(world: JobWorld) -> None:
    world.make_job()
    hypha_job = world.call("GET", world.path(HYPHA_JOB, world.name))
    cluster = world.operating.cluster
    for number in range(100):
        await cluster.event(hypha_job, "Warning", "ExecutorFailed", f"{number}\x1b[2J\n" + 5_000 * "x")
    messages = [event["message"] for event in world.items(EVENT)]
    assert len(messages) == MAX_EVENTS_PER_MINUTE
    assert all(message.isprintable() and len(message) <= 1024 for message in messages)
    world.clock.ahead_s += 61
    await cluster.event(hypha_job, "Normal", "Completed", "it ended")
    assert ("Normal", "Completed") in world.events()


@pytest.fixture
async def queued(control_plane: ApiServer, placement: dict[str, Any]) -> AsyncIterator[JobWorld]:
    """A world whose job is for a queue, and whose pods stay pending until a test removes their gate."""
    gated = {"spec": placement["spec"] | {"schedulingGates": [{"name": "hypha.test/later"}]}}
    async with open_job_world(control_plane, executor={"queueName": "q", "template": gated}) as world:
        world.make_job()
        await world.until(lambda: world.status.get("reason") == "Queued")
        suspend(world, False)
        await world.until(lambda: world.status.get("podUid"))
        yield world


def suspend(world: JobWorld, suspended: bool) -> None:
    """Suspend or resume the Job, as a queue does."""
    world.call("PATCH", world.path(JOB, world.name), {"spec": {"suspend": suspended}})


async def test_a_job_that_its_queue_suspends_before_its_executor_started_runs_once_it_is_admitted_again(
    queued: JobWorld,
) -> None:
    first = queued.status["podUid"]
    suspend(queued, True)
    await queued.until(lambda: queued.status["reason"] == "Queued" and not queued.pods)
    suspend(queued, False)
    await queued.until(lambda: queued.status["podUid"] != first)
    pod = queued.path(POD, queued.pods[0]["metadata"]["name"])
    queued.call("PATCH", pod, {"spec": {"schedulingGates": None}})
    await queued.until_phase("Running")
    assert [reason for _, reason in queued.events()].count("Queued") == 2


async def test_a_pod_whose_deletion_is_known_before_the_suspension_of_its_job_does_not_end_the_job(
    queued: JobWorld,
) -> None:
    pod = queued.pods[0]
    suspend(queued, True)
    version = str(int(pod["metadata"]["resourceVersion"]) + 1)
    pod["metadata"] |= {"deletionTimestamp": queued.deadline(30), "resourceVersion": version}
    assert queued.operating.store.put(POD, pod)
    await queued.step(observe=False)
    assert queued.status["reason"] == "Queued"
