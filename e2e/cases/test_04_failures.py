"""Jobs that cannot start, or that a user ends. Each frees its lease, notifies its scheduler and shows the reason."""

from collections.abc import Callable, Iterator

import pytest

from e2e.kube import Kube, Object, condition, eventually
from e2e.tasks import SMALL, WAITER, Task, Tasks
from e2e.workers import Worker, failed, job_of, pods_of, runs
from hypha_messages.types import Resources

_PRIORITY = "e2e-no-more"
EXECUTORS = {
    "image_missing": {"image": "registry.invalid/nobody/nothing:0"},
    "over_quota": {"template": {"spec": {"priorityClassName": _PRIORITY}}},
    "nowhere": {"template": {"spec": {"nodeSelector": {"e2e.hypha.space/nowhere": "true"}}}},
}
CRASHER = "import sys; print('the last words', flush=True); sys.exit(3)"
_STARTS_NOT_S = 180


@pytest.fixture(scope="module")
def used_up_quota(kube: Kube, worker: Worker) -> Iterator[None]:
    """A quota that pods of one priority have used up. It does not count other pods."""
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": _PRIORITY},
        "value": 0,
    }
    counted = {"scopeName": "PriorityClass", "operator": "In", "values": [_PRIORITY]}
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-more", "namespace": worker.namespace},
        "spec": {"hard": {"limits.memory": "1M"}, "scopeSelector": {"matchExpressions": [counted]}},
    }
    kube.apply(priority, quota)
    yield
    kube.delete("resourcequotas", worker.namespace, "no-more")
    kube.delete("priorityclasses", None, _PRIORITY)


@pytest.fixture(scope="module")
def hopeless(worker: Worker, tasks: Tasks, used_up_quota: None) -> dict[str, Task]:
    """Jobs that never start. They wait at the same time, because each waits for a minute."""
    gpus = Resources(cpu=0.1, memory=0.2, storage=0.1, gpu=60)
    return {
        "image": tasks.run(worker.peer_id, WAITER, "3600", executor="image-missing"),
        "node": tasks.run(worker.peer_id, WAITER, "3600", executor="nowhere"),
        "gpus": tasks.run(worker.peer_id, WAITER, "3600", resources=gpus),
        "quota": tasks.run(worker.peer_id, WAITER, "3600", executor="over-quota"),
    }


def running(kube: Kube, worker: Worker, tasks: Tasks) -> Task:
    """A job that runs until something ends it."""
    return runs(kube, worker, tasks.run(worker.peer_id, WAITER, "3600"))


def explains_and_frees(kube: Kube, worker: Worker, task: Task, *words: str) -> None:
    """Assert that a condition of the job contains these words, and that its lease and pods are gone."""
    job = job_of(kube, worker, task)
    messages = [entry["message"] for entry in job["status"]["conditions"]]
    assert any(all(word in message for word in words) for message in messages), messages
    eventually(
        "the end was reported", lambda: condition(job_of(kube, worker, task), "Reported").get("status") == "True"
    )
    eventually("no pod of it runs", lambda: not any(alive(pod) for pod in pods_of(kube, worker, task)))
    worker.free()


def alive(pod: Object) -> bool:
    return pod["status"].get("phase") not in ("Succeeded", "Failed")


def test_a_program_that_crashes_is_reported_with_its_last_lines(kube: Kube, worker: Worker, tasks: Tasks) -> None:
    task = tasks.run(worker.peer_id, CRASHER)
    status = failed(kube, worker, task, "ExecutorFailed")
    assert "the last words" in "\n".join(status["lastLines"])
    explains_and_frees(kube, worker, task, "3")


@pytest.mark.parametrize(
    ("name", "reason", "word"),
    [
        pytest.param("image", "ImagePull", "registry.invalid/nobody/nothing:0", id="its image does not exist"),
        pytest.param("node", "Unschedulable", "node", id="no node matches it"),
        pytest.param("gpus", "Unschedulable", "nvidia.com/gpu", id="it wants more GPUs than a node has"),
        pytest.param("quota", "QuotaExceeded", "no-more", id="the quota is used up"),
    ],
)
def test_a_job_fails_because(
    kube: Kube, worker: Worker, hopeless: dict[str, Task], name: str, reason: str, word: str
) -> None:
    failed(kube, worker, hopeless[name], reason, _STARTS_NOT_S)
    explains_and_frees(kube, worker, hopeless[name], word)


def delete_pod(kube: Kube, worker: Worker, task: Task) -> None:
    (pod,) = pods_of(kube, worker, task)
    kube.delete("pods", worker.namespace, pod["metadata"]["name"])


def evict_pod(kube: Kube, worker: Worker, task: Task) -> None:
    (pod,) = pods_of(kube, worker, task)
    kube.evict(worker.namespace, pod["metadata"]["name"])


def delete_job(kube: Kube, worker: Worker, task: Task) -> None:
    kube.delete("jobs", worker.namespace, task.name)


def drain_node(kube: Kube, worker: Worker, task: Task) -> None:
    (pod,) = pods_of(kube, worker, task)
    node = pod["spec"]["nodeName"]
    selector = f"--pod-selector=hypha.space/job={task.name}"
    try:
        kube.kubectl("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=90s", selector)
    finally:
        kube.kubectl("uncordon", node)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param(delete_pod, "JobDeleted", id="its pod is deleted by hand"),
        pytest.param(evict_pod, "Evicted", id="its pod is evicted"),
        pytest.param(delete_job, "JobDeleted", id="its Job is deleted by hand"),
        pytest.param(drain_node, "Evicted", id="its node is drained"),
    ],
)
def test_a_job_taken_away_fails_when(
    kube: Kube, worker: Worker, tasks: Tasks, harm: Callable[[Kube, Worker, Task], None], reason: str
) -> None:
    task = running(kube, worker, tasks)
    harm(kube, worker, task)
    assert task.ended() == "Failed"
    status = job_of(kube, worker, task)["status"]
    assert (status["phase"], status["reason"]) == ("Failed", reason), status
    explains_and_frees(kube, worker, task)
    assert not task.lease_lost
    assert tasks.run(worker.peer_id, "pass", resources=SMALL).ended() == "Finished"
