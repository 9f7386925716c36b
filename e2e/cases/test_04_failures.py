"""Jobs that crash or are taken away. Each frees its lease, notifies its scheduler and shows the reason."""

from collections.abc import Callable

import pytest

from e2e.kube import Kube, Object, condition, eventually
from e2e.tasks import SMALL, WAITER, Task, Tasks
from e2e.workers import Worker, failed, job_of, pods_of, runs

CRASHER = "import sys; print('the last words', flush=True); sys.exit(3)"


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


def delete_pod(kube: Kube, worker: Worker, task: Task) -> None:
    (pod,) = pods_of(kube, worker, task)
    kube.delete("pods", worker.namespace, pod["metadata"]["name"])


def allow_disruption(kube: Kube, worker: Worker) -> None:
    """Let drains and evictions end jobs, from which a PodDisruptionBudget keeps them by default."""
    budget = worker.namespace, f"{worker.name}-job"
    worker.change(jobs={"disruption": "Allow"})
    eventually("the budget is gone", lambda: kube.get("poddisruptionbudgets", *budget) is None)


def evict_pod(kube: Kube, worker: Worker, task: Task) -> None:
    allow_disruption(kube, worker)
    (pod,) = pods_of(kube, worker, task)
    kube.evict(worker.namespace, pod["metadata"]["name"])


def delete_job(kube: Kube, worker: Worker, task: Task) -> None:
    kube.delete("jobs", worker.namespace, task.name)


def drain_node(kube: Kube, worker: Worker, task: Task) -> None:
    allow_disruption(kube, worker)
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
