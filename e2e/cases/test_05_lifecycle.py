"""Changes by a user while a job runs, and what remains after the deletion of a worker."""

from e2e.kube import Kube, consistently, eventually
from e2e.tasks import WAITER, Task, Tasks
from e2e.workers import Worker, runs

_LONG_S = "40"


def running(kube: Kube, worker: Worker, tasks: Tasks, seconds: str) -> Task:
    return runs(kube, worker, tasks.run(worker.peer_id, WAITER, seconds))


def controller_uid(worker: Worker) -> str | None:
    pod = worker.controller()
    return pod["metadata"]["uid"] if pod else None


def test_a_changed_price_reaches_the_running_node(worker: Worker, tasks: Tasks) -> None:
    before = controller_uid(worker)
    worker.change(offer={"floor": 1_000_000_000, "price": 1_000_000_000})
    eventually("no offers below the floor", lambda: not tasks.offers(worker.peer_id), 60)
    worker.change(offer={"floor": None, "price": None})
    eventually("offers", lambda: tasks.offers(worker.peer_id), 60)
    assert controller_uid(worker) == before


def test_a_new_controller_loses_no_running_job(kube: Kube, worker: Worker, tasks: Tasks) -> None:
    task = running(kube, worker, tasks, _LONG_S)
    before = controller_uid(worker)
    worker.change(controller={"template": {"metadata": {"annotations": {"changed": "once"}}}})
    eventually("a new controller runs", lambda: controller_uid(worker) not in (None, before))
    worker.ready()
    assert task.ended() == "Finished"
    assert not task.lease_lost
    assert len(worker.jobs()) == 1


def test_a_suspended_worker_offers_nothing_and_its_running_job_finishes(
    kube: Kube, worker: Worker, tasks: Tasks
) -> None:
    task = running(kube, worker, tasks, _LONG_S)
    before = controller_uid(worker)
    worker.change(suspend=True)
    try:
        eventually("no offers", lambda: not tasks.offers(worker.peer_id), 60)
        consistently("no offers", lambda: not tasks.offers(worker.peer_id), 10)
        assert task.ended() == "Finished"
        assert not task.lease_lost
    finally:
        worker.change(suspend=False)
    assert controller_uid(worker) == before
    eventually("offers", lambda: tasks.offers(worker.peer_id), 60)


def test_a_deleted_worker_notifies_its_schedulers_and_leaves_nothing(kube: Kube, worker: Worker, tasks: Tasks) -> None:
    task = running(kube, worker, tasks, "3600")
    worker.delete()
    assert task.ended(1) == "Failed"
    kinds = (
        "deployments", "jobs", "pods", "configmaps", "services", "serviceaccounts", "roles", "rolebindings",
        "networkpolicies", "poddisruptionbudgets", "hyphajobs",
    )  # fmt: skip

    def left() -> list[str]:
        selector = "hypha.space/worker=" + worker.name
        return [
            f"{kind}/{item['metadata']['name']}"
            for kind in kinds
            for item in kube.list_of(kind, worker.namespace, selector)
        ]

    eventually("nothing is left in the namespace", lambda: not left(), 120)
    secrets = [item["metadata"]["name"] for item in kube.list_of("secrets", worker.namespace)]
    assert secrets == [worker.spec["identity"]["secretName"]]
