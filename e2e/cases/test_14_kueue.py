"""Jobs that the real Kueue queues, with a quota as people write it: CPU, memory and devices."""

from collections.abc import Iterator

import pytest

from e2e import addons, examples, installation
from e2e.devnet import Devnet
from e2e.kube import Kube, Object, eventually
from e2e.settings import Settings
from e2e.tasks import WAITER, Task, Tasks
from e2e.workers import Namespaces, Worker, failed, job_of, pods_of, program_spec, runs
from hypha_messages.types import Resources

pytestmark = pytest.mark.long

_QUEUE_S = 45
_LEASE = Resources(cpu=0.2, memory=0.2, storage=0.1, gpu=1.0)
_GATE = "e2e.hypha.test/later"
EXECUTORS: dict[str, Object] = {
    "queued": {"queueName": "training"},
    "modest": {
        "queueName": "training",
        "labels": {"kueue.x-k8s.io/priority-class": "modest"},
        "template": {"spec": {"schedulingGates": [{"name": _GATE}]}},
    },
    "urgent": {"queueName": "training", "labels": {"kueue.x-k8s.io/priority-class": "urgent"}},
    "stuck": {"queueName": "without-quota"},
}


def _queue(name: str, namespace: str, **quota: str) -> list[Object]:
    """Return a ClusterQueue of one flavor that preempts for higher priorities, and a LocalQueue for it."""
    resources = [
        {"name": resource.replace("gpu", "nvidia.com/gpu"), "nominalQuota": amount}
        for resource, amount in quota.items()
    ]
    group = {
        "coveredResources": [resource["name"] for resource in resources],
        "flavors": [{"name": "any-node", "resources": resources}],
    }
    api = {"apiVersion": "kueue.x-k8s.io/v1beta2"}
    return [
        {
            **api,
            "kind": "ClusterQueue",
            "metadata": {"name": name},
            "spec": {
                "namespaceSelector": {},
                "resourceGroups": [group],
                "preemption": {"withinClusterQueue": "LowerPriority"},
            },
        },
        {
            **api,
            "kind": "LocalQueue",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterQueue": name},
        },
    ]


@pytest.fixture(scope="module")
def queues(kube: Kube, namespaces: Namespaces) -> Iterator[str]:
    """Kueue, and a namespace with a queue for one job at a time and one for none."""
    namespace = namespaces("hypha-e2e-kueue")
    api = {"apiVersion": "kueue.x-k8s.io/v1beta2"}
    with addons.kueue(kube):
        kube.apply(
            {**api, "kind": "ResourceFlavor", "metadata": {"name": "any-node"}},
            *(
                {**api, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value, "description": ""}
                for name, value in (("modest", 10), ("urgent", 1000))
            ),
            *_queue("training", namespace, cpu="500m", memory="1Gi", gpu="1"),
            *_queue("without-quota", namespace, cpu="0", memory="0", gpu="0"),
        )
        yield namespace


@pytest.fixture(scope="module")
def worker(kube: Kube, devnet: Devnet, queues: str, settings: Settings) -> Iterator[Worker]:
    spec = program_spec(devnet, "queued", installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE"), **EXECUTORS)
    spec["jobs"]["queueTimeoutSeconds"] = _QUEUE_S
    made = Worker(kube, devnet, queues, "queued", spec).apply().ready()
    yield made
    made.delete()


def start(tasks: Tasks, worker: Worker, executor: str, seconds: str) -> Task:
    return tasks.run(worker.peer_id, WAITER, seconds, executor=executor, resources=_LEASE)


def reason(kube: Kube, worker: Worker, task: Task) -> tuple[str | None, str | None]:
    status = job_of(kube, worker, task)["status"]
    return status.get("phase"), status.get("reason")


def test_a_queue_with_quota_for_cpu_memory_and_devices_admits_a_job_and_it_runs(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    task = runs(kube, worker, start(tasks, worker, "queued", "1"))
    (workload,) = [item for item in kube.items("workloads", worker.namespace) if task.name in item["metadata"]["name"]]
    (assigned,) = workload["status"]["admission"]["podSetAssignments"]
    assert assigned["flavors"] == dict.fromkeys(("cpu", "memory", "nvidia.com/gpu"), "any-node")
    assert task.ended() == "Finished"


def test_the_example_for_kueue_runs_a_job(
    kube: Kube, devnet: Devnet, queues: str, namespaces: Namespaces, tasks: Tasks
) -> None:
    namespaces(examples.NAMESPACE)
    with examples.started(kube, devnet, "kueue") as example:
        assert examples.run(example, tasks).ended() == "Finished"


def test_a_job_that_is_preempted_before_its_executor_started_waits_in_the_queue_again_and_then_runs(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    modest = start(tasks, worker, "modest", "1")
    (first,) = eventually("the modest job has its pod", lambda: pods_of(kube, worker, modest))
    urgent = runs(kube, worker, start(tasks, worker, "urgent", "8"))
    eventually("the modest job is queued", lambda: reason(kube, worker, modest) == ("Pending", "Queued"))
    assert urgent.ended() == "Finished"

    def admitted_again() -> list[Object]:
        return [pod for pod in pods_of(kube, worker, modest) if pod["metadata"]["uid"] != first["metadata"]["uid"]]

    (pod,) = eventually("the modest job has a new pod", admitted_again)
    kube.patch("pods", worker.namespace, pod["metadata"]["name"], {"spec": {"schedulingGates": None}})
    assert modest.ended() == "Finished"
    assert not modest.lease_lost


def test_a_job_that_is_preempted_after_its_executor_started_fails_as_preempted(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    running = runs(kube, worker, start(tasks, worker, "queued", "120"))
    urgent = start(tasks, worker, "urgent", "1")
    failed(kube, worker, running, "Preempted")
    assert urgent.ended() == "Finished"


def test_a_job_whose_queue_never_admits_it_fails_after_its_time_in_the_queue(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    status = failed(kube, worker, start(tasks, worker, "stuck", "1"), "QueueTimeout", _QUEUE_S + 60)
    assert "startTime" not in status
