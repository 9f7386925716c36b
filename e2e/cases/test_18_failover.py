"""The operator's leading replica is lost, and the release is uninstalled and installed again."""

import time

import psutil
import pytest

from e2e import installation
from e2e.kube import Kube, eventually
from e2e.settings import Settings, load
from e2e.tasks import WAITER, Tasks
from e2e.workers import Worker, job_of, pods_of, runs

_MAX_S = 20.0
_LEASE = ("default", "hypha-operator-cluster")


def holder(kube: Kube) -> str:
    """Return the name of the pod that leads."""
    lease = kube.get("leases", *_LEASE)
    identity: str = ((lease or {}).get("spec") or {}).get("holderIdentity", "")
    return identity.rpartition("/")[2]


def kill(kube: Kube, leader: str) -> None:
    """End a leader's processes without a warning, as the loss of its node would, and keep them from being restarted."""
    processes = [process for process in psutil.process_iter() if _environment(process).get("HYPHA_POD_NAME") == leader]
    if not processes:
        pytest.skip("another cluster's processes are not on this machine")
    for process in processes:
        process.kill()
    kube.delete("pods", installation.NAMESPACE, leader, 0)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        environment: dict[str, str] = process.environ()
    except psutil.Error:
        return {}
    return environment


def test_both_replicas_are_ready_and_one_of_them_leads(kube: Kube, operator: None) -> None:
    pods = kube.items("pods", installation.NAMESPACE, app_kubernetes_io__component="operator")
    assert len(pods) == 2
    assert installation.operator_ready(kube)
    assert holder(kube) in {pod["metadata"]["name"] for pod in pods}


@pytest.mark.parametrize("attempt", range(1, load().repeats + 1))
def test_a_job_starts_within_20_seconds_although_the_leading_operator_is_killed(
    kube: Kube, worker: Worker, tasks: Tasks, attempt: int
) -> None:
    leader = holder(kube)
    kill(kube, leader)
    started = time.monotonic()
    assert holder(kube) == leader, "it gave the Lease back, so it had a warning"
    task = tasks.run(worker.peer_id, WAITER, "5")
    eventually("the job has a pod", lambda: pods_of(kube, worker, task), 60, every_s=0.1)
    assert time.monotonic() - started < _MAX_S
    assert holder(kube) != leader
    assert task.ended() == "Finished"
    worker.free()
    eventually("both replicas are ready", lambda: installation.operator_ready(kube), 60)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_release_that_is_uninstalled_while_a_job_runs_blocks_no_deletion_and_the_job_goes_on(
    kube: Kube, worker: Worker, tasks: Tasks, settings: Settings
) -> None:
    task = runs(kube, worker, tasks.run(worker.peer_id, WAITER, "40"))
    eventually("the finalizer is held", lambda: worker.get()["metadata"].get("finalizers"))
    installation.uninstall(kube, settings)
    try:
        assert not worker.get()["metadata"].get("finalizers")
        assert kube.get("leases", *_LEASE) is None
        assert job_of(kube, worker, task)["status"]["phase"] == "Running"
    finally:
        installation.install(kube, settings)
    assert task.ended() == "Finished"
    worker.free()
