"""The cases' HyphaWorkers and their state."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from e2e.devnet import NEEDED, Devnet
from e2e.kube import Kube, Object, condition, eventually
from e2e.tasks import RUNNER, Task

Namespaces = Callable[[str], str]
"""Creates a namespace of this name."""

READY_S: Final = 120.0
GONE_S: Final = 120.0
SMALL_CONTROLLER: Final = {"requests": {"cpu": "80m", "memory": "96Mi"}, "limits": {"memory": "512Mi"}}
RESTRICTED: Final = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


@dataclass
class Worker:
    """A HyphaWorker with its identity.

    Attributes:
        node: the name of its certificate; unique in the network.
        spec: the HyphaWorker's spec.
    """

    kube: Kube
    devnet: Devnet
    namespace: str
    name: str
    spec: dict[str, Any]
    node: str = field(init=False)

    def __post_init__(self) -> None:
        self.node = f"{self.namespace}-{self.name}"

    @property
    def object(self) -> Object:
        """The HyphaWorker's manifest."""
        return {
            "apiVersion": "hypha.space/v1alpha1",
            "kind": "HyphaWorker",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": self.spec,
        }

    def apply(self) -> "Worker":
        """Apply its Secret and the HyphaWorker."""
        self.kube.apply(self.devnet.secret(self.spec["identity"]["secretName"], self.namespace, self.node), self.object)
        return self

    def change(self, **changes: Any) -> None:
        """Merge a change into its spec."""
        self.kube.patch("hyphaworkers", self.namespace, self.name, {"spec": changes})

    @property
    def peer_id(self) -> str:
        """Its peer id."""
        return self.devnet.identity(self.node).peer_id

    def get(self) -> Object:
        """Return the HyphaWorker from the API server."""
        found = self.kube.get("hyphaworkers", self.namespace, self.name)
        if found is None:
            raise AssertionError(f"{self.name} is gone")
        return found

    def condition(self, type_: str) -> Object:
        """Return one of its conditions."""
        return condition(self.get(), type_)

    def status_of_node(self) -> dict[str, Any]:
        """Return the status that its node reports."""
        node: dict[str, Any] = self.get().get("status", {}).get("node", {})
        return node

    def ready(self) -> "Worker":
        """Wait until it is ready in its current generation."""

        def probe() -> bool:
            item = self.get()
            observed: bool = item.get("status", {}).get("observedGeneration") == item["metadata"]["generation"]
            return observed and condition(item, "Ready").get("status") == "True"

        eventually(f"{self.name} is ready", probe, READY_S)
        return self

    def controller(self) -> Object | None:
        """Return its controller's pod, unless the pod is being deleted."""
        labels = {"app_kubernetes_io__instance": self.name, "app_kubernetes_io__component": "controller"}
        pods = self.kube.items("pods", self.namespace, **labels)
        return next((pod for pod in pods if "deletionTimestamp" not in pod["metadata"]), None)

    def jobs(self) -> list[Object]:
        """Return its HyphaJobs."""
        return self.kube.items("hyphajobs", self.namespace, hypha_space__worker=self.name)

    def free(self) -> None:
        """Wait until it has no leases."""

        def idle() -> bool:
            node = self.status_of_node()
            return node.get("activeLeases") == node.get("activeJobs") == 0

        eventually(f"{self.name} has no lease", idle)

    def delete(self) -> None:
        """Delete it, and wait until it is gone."""
        self.kube.delete("hyphaworkers", self.namespace, self.name)
        gone = "hyphaworkers", self.namespace, self.name
        eventually(f"{self.name} is gone", lambda: self.kube.get(*gone) is None, GONE_S)


def spec(devnet: Devnet, name: str, **more: Any) -> dict[str, Any]:
    """Return the spec of a worker in the devnet that fits a small cluster."""
    return {
        "identity": {"secretName": f"{name}-identity"},
        "network": {"gateways": [devnet.gateway], "excludeCidr": []},
        "controller": {"resources": SMALL_CONTROLLER},
        "jobs": {"hubEndpoint": devnet.hub, "terminationGraceSeconds": 20},
    } | more


def trainer_spec(devnet: Devnet, name: str) -> dict[str, Any]:
    """Return the spec of a worker that trains the digits."""
    executors = [{"class": "train", "name": "diloco-transformer"}]
    return spec(devnet, name, resources=_quantities(NEEDED["trainer"]), executors=executors)


def inference_spec(devnet: Devnet, name: str) -> dict[str, Any]:
    """Return the spec of a worker that infers."""
    executors = [{"class": "inference", "name": "transformers"}]
    return spec(devnet, name, resources=_quantities(NEEDED["trainer"]), executors=executors)


def server_spec(devnet: Devnet, name: str) -> dict[str, Any]:
    """Return the spec of a worker that aggregates."""
    executors = [{"class": "aggregate", "name": "parameter-server"}]
    return spec(devnet, name, resources=_quantities(NEEDED["server"]), executors=executors)


def program_spec(devnet: Devnet, name: str, image: str, **executors: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a worker that runs the cases' programs in this image, and has further executors, by name."""
    runner = {"class": "train", "name": "program", "image": image, "command": RUNNER}
    others = [{**runner, "name": name.replace("_", "-"), **changes} for name, changes in executors.items()]
    return spec(
        devnet,
        name,
        resources={"cpu": "900m", "memory": "2G", "storage": "4G", "gpu": {"count": 64, "memory": "1G"}},
        offer={"strategy": "flexible", "minimum": {"cpu": "100m", "memory": "200M", "storage": "100M"}},
        executors=[runner, *others],
    )


def _quantities(needed: dict[str, float]) -> dict[str, str]:
    return {name: f"{round(amount * 1000)}{'m' if name == 'cpu' else 'M'}" for name, amount in needed.items()}


def namespace(name: str) -> Object:
    """Return a namespace that enforces the Pod Security level `restricted`."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}


def results(kube: Kube, item: Object) -> Any:
    """Return the last line of an executor's log, parsed as JSON."""
    text = kube.logs(item["metadata"]["namespace"], item["status"]["podName"], "executor")
    return json.loads(text.splitlines()[-1])


def job_of(kube: Kube, worker: Worker, task: Task) -> Object:
    """Return the HyphaJob of a task."""
    job = kube.get("hyphajobs", worker.namespace, task.name)
    if job is None:
        raise AssertionError(f"{task.name} does not exist")
    job.setdefault("status", {})
    return job


def runs(kube: Kube, worker: Worker, task: Task) -> Task:
    """Wait until a task's job runs; return the task."""
    eventually(f"{task.name} runs", lambda: job_of(kube, worker, task)["status"].get("phase") == "Running")
    return task


def pods_of(kube: Kube, worker: Worker, task: Task) -> list[Object]:
    """Return the pods of a task."""
    return kube.items("pods", worker.namespace, hypha_space__job=task.name)


def restarts(pod: Object) -> list[int]:
    """Return how often each container was restarted."""
    status = pod["status"]
    containers = [*status.get("initContainerStatuses", []), *status["containerStatuses"]]
    return [container["restartCount"] for container in containers]


def failed(kube: Kube, worker: Worker, task: Task, reason: str, timeout_s: float = 120) -> Object:
    """Wait until a job has failed for a reason, its scheduler was notified, and its lease is free."""
    assert task.ended(timeout_s) == "Failed"
    status: Object = job_of(kube, worker, task)["status"]
    assert status["phase"] == "Failed"
    assert status["reason"] == reason, status
    return status
