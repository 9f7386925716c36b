"""What isolates a job is the engine of NetworkPolicies."""

import pytest

from e2e import installation
from e2e.kube import Kube, eventually
from e2e.settings import Settings
from e2e.tasks import Tasks
from e2e.workers import Worker, job_of, results

CONNECT = """
import json, socket
reached = []
for target in args:
    host, port = target.split(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
        reached.append(target)
    except OSError:
        pass
print(json.dumps(reached))
"""


def reached(kube: Kube, worker: Worker, tasks: Tasks, targets: list[str]) -> list[str]:
    """Return those of the targets that a job can connect to."""
    task = tasks.run(worker.peer_id, CONNECT, *targets)
    assert task.ended() == "Finished"
    found: list[str] = results(kube, job_of(kube, worker, task))
    return found


def test_the_policy_engine_refuses_a_job_what_it_reaches_while_the_engine_is_off(
    kube: Kube, worker: Worker, tasks: Tasks, settings: Settings
) -> None:
    if not settings.own_cluster:
        pytest.skip("the engine of another cluster stays as it is")
    controller, service = worker.controller(), kube.get("services", "default", "kubernetes")
    assert controller is not None
    assert service is not None
    targets = [f"{controller['status']['podIP']}:4001", f"{service['spec']['clusterIP']}:443"]
    assert reached(kube, worker, tasks, targets) == []
    with installation.policies_ignored():
        assert reached(kube, worker, tasks, targets) == targets
    eventually("the engine refuses again", lambda: reached(kube, worker, tasks, targets) == [], 60)
