"""Admission webhooks as clusters have them: one that changes objects, and one that refuses them."""

from collections.abc import Iterator
from typing import Any

import pytest

from e2e import addons
from e2e.cluster.image import BUSYBOX
from e2e.kube import Kube, Object, consistently
from e2e.settings import Settings
from e2e.tasks import WAITER, Tasks
from e2e.workers import Worker, failed, job_of, pods_of

pytestmark = pytest.mark.long

EXECUTORS: dict[str, Object] = {"labelled": {"labels": {"team": "research"}}}
_TOLERATION = {"key": "e2e.hypha.test/spot", "operator": "Exists", "effect": "NoSchedule"}
_SETTLED_S = 15


@pytest.fixture(autouse=True)
def own_cluster(settings: Settings) -> None:
    if not settings.own_cluster:
        pytest.skip("another cluster may not reach the webhook's server")


def tolerant(pod_path: str, item: Object) -> list[Object]:
    """Return the patch that adds a label and a toleration, as the owners of a cluster with spot nodes do."""
    at = item
    for part in filter(None, pod_path.split("/")):
        at = at[part]
    labels = item["metadata"].get("labels", {}) | {"e2e.hypha.test/pool": "spot"}
    tolerations = [entry for entry in at["spec"].get("tolerations", []) if entry != _TOLERATION]
    return [
        {"op": "add", "path": "/metadata/labels", "value": labels},
        {"op": "add", "path": f"{pod_path}/spec/tolerations", "value": [*tolerations, _TOLERATION]},
    ]


def meshed(pod: Object) -> list[Object]:
    """Return the patch that adds a proxy, as a service mesh does, and a label and a toleration."""
    restricted: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    proxy = {"name": "istio-proxy", "image": BUSYBOX, "securityContext": restricted}
    return [*tolerant("", pod), {"op": "add", "path": "/spec/containers/-", "value": proxy}]


@pytest.fixture
def mesh(kube: Kube, worker: Worker) -> Iterator[list[Object]]:
    """A mesh that injects its proxy into each pod of a job, even into one that asks it not to."""

    def review(pod: Object) -> list[Object]:
        is_new_job = pod["metadata"]["labels"].get("app.kubernetes.io/component") == "job" and not pod.get("status")
        return meshed(pod) if is_new_job else []

    with addons.webhook(kube, "pods", worker.namespace, review) as reviewed:
        yield reviewed


def test_a_job_whose_pod_gets_the_proxy_of_a_mesh_ends_with_its_executor_and_bridge(
    kube: Kube, worker: Worker, tasks: Tasks, mesh: list[Object]
) -> None:
    task = tasks.run(worker.peer_id, WAITER, "3")
    assert task.ended(60) == "Finished"
    (pod,) = pods_of(kube, worker, task)
    assert "istio-proxy" in [container["name"] for container in pod["spec"]["containers"]]
    assert _TOLERATION in pod["spec"]["tolerations"]
    assert job_of(kube, worker, task)["status"]["reason"] == "Completed"


def test_a_webhook_that_changes_the_controller_s_deployment_does_not_make_the_operator_apply_it_for_ever(
    kube: Kube, worker: Worker
) -> None:
    name = f"{worker.name}-controller"

    def deployment() -> Object:
        found = kube.get("deployments", worker.namespace, name)
        assert found is not None
        return found

    with addons.webhook(kube, "deployments", worker.namespace, lambda item: tolerant("/spec/template", item)):
        worker.change(controller={"template": {"metadata": {"labels": {"changed": "yes"}}}})
        worker.ready()
        changed = deployment()
        assert _TOLERATION in changed["spec"]["template"]["spec"]["tolerations"]
        generation = changed["metadata"]["generation"]
        consistently("it stays", lambda: deployment()["metadata"]["generation"] == generation, _SETTLED_S)


def test_a_job_that_a_webhook_refuses_fails_with_its_message_and_one_that_satisfies_it_runs(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    def review(job: Object) -> list[Object] | str:
        return [] if "team" in job["metadata"].get("labels", {}) else "each Job needs the label team"

    with addons.webhook(kube, "jobs", worker.namespace, review):
        refused = tasks.run(worker.peer_id, WAITER, "1")
        status = failed(kube, worker, refused, "AdmissionRefused", 150)
        ready = next(entry for entry in status["conditions"] if entry["type"] == "Ready")
        assert "each Job needs the label team" in ready["message"]
        assert tasks.run(worker.peer_id, WAITER, "1", executor="labelled").ended() == "Finished"
