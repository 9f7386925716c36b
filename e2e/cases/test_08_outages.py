"""Outages of the operator and the API server, and the permanent loss of a controller."""

import time
from functools import partial

import pytest

from e2e import installation, workers
from e2e.devnet import Devnet
from e2e.kube import Kube, eventually
from e2e.settings import Settings
from e2e.tasks import WAITER, Tasks
from e2e.workers import Worker, job_of, runs

pytestmark = pytest.mark.long

_COUNT = 6
_CHILDREN = {
    "deployments": "{}-controller",
    "configmaps": "{}-controller",
    "serviceaccounts": "{}-controller",
    "roles": "{}-controller",
    "rolebindings": "{}-controller",
    "services": "{}-connector",
}


def not_ready(worker: Worker) -> bool:
    return bool(worker.condition("Ready").get("status") == "False")


def test_an_operator_killed_while_workers_come_and_go_orphans_and_duplicates_no_object(
    kube: Kube, devnet: Devnet, namespaces: workers.Namespaces
) -> None:
    namespace = namespaces("hypha-e2e-many")
    # Their Secrets are missing, so that no controller runs. This case is about the operator alone.
    many = [
        Worker(kube, devnet, namespace, f"many-{number}", workers.trainer_spec(devnet, f"many-{number}"))
        for number in range(_COUNT)
    ]
    for worker in many:
        kube.apply(worker.object)
        installation.kill_operator(kube)
        time.sleep(1.5)
    gone, kept = many[: _COUNT // 2], many[_COUNT // 2 :]
    for worker in gone:
        kube.delete("hyphaworkers", namespace, worker.name)
        time.sleep(1)
        installation.kill_operator(kube)
    eventually("the operator is ready", lambda: installation.operator_ready(kube), 180)

    def children_are(kind: str, expected: set[str]) -> bool:
        found = kube.list_of(kind, namespace, "hypha.space/worker")
        return {name for item in found if not (name := item["metadata"]["name"]).endswith("-job")} == expected

    for kind, form in _CHILDREN.items():
        expected = {form.format(worker.name) for worker in kept}
        eventually(f"exactly these {kind}: {expected}", partial(children_are, kind, expected), 120)
    for worker in kept:
        eventually(f"{worker.name} is not ready", partial(not_ready, worker))
        worker.delete()


@pytest.mark.timeout(600)
def test_a_controller_away_for_longer_than_its_leases_has_its_jobs_ended_by_the_operator(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    task = runs(kube, worker, tasks.run(worker.peer_id, WAITER, "3600"))
    worker.change(controller={"image": "registry.invalid/nobody/nothing:0"})
    try:
        eventually(
            "the operator has ended the job",
            lambda: job_of(kube, worker, task)["status"].get("phase") == "Failed",
            240,
        )
        assert job_of(kube, worker, task)["status"]["reason"] == "LeaseLost"
    finally:
        worker.change(controller={"image": None})
    worker.ready()
    worker.free()


@pytest.mark.timeout(600)
def test_an_api_server_away_for_a_minute_does_not_disturb_a_running_job(
    kube: Kube, worker: Worker, tasks: Tasks, settings: Settings
) -> None:
    if not settings.own_cluster:
        pytest.skip("only the API server of `make cluster` is stopped")
    task = runs(kube, worker, tasks.run(worker.peer_id, WAITER, "75"))
    with installation.api_server_stopped():
        time.sleep(60)
    assert task.ended(120) == "Finished"
    assert not task.lease_lost
    assert job_of(kube, worker, task)["status"]["phase"] == "Succeeded"
    worker.ready()
    worker.free()
