"""Two replicas of the operator, on a real control plane. The leading one is killed, or cut off from the API server.

FAILOVER_KILLS and FAILOVER_CUTS (1 each) say how often.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from chart.operator_process import OperatorProcess, Release
from hypha_contracts.names import job_name
from support import audit
from support.api_server import ApiServer, PrivateApiServer
from support.audit import created, out_of_turn
from support.cable import Cable
from support.resources import install_definitions, job_manifest, worker_manifest
from support.waiting import until

KILLS = int(os.environ.get("FAILOVER_KILLS", "1"))
CUTS = int(os.environ.get("FAILOVER_CUTS", "1"))
MAX_S = 20.0
LEASE = "hypha-operator"
JOB_CONTROLLER = "system:serviceaccount:kube-system:job-controller"


class Replica:
    """A replica of the operator behind a cable of its own."""

    def __init__(self, release: Release, name: str, directory: Path) -> None:
        self._release, self.name, self._log = release, name, directory / f"{name}.log"
        self.cable = Cable(release.api.url)
        self.process = self._start()

    def _start(self) -> OperatorProcess:
        return self._release.start(self._log, self.name, url=self.cable.url)

    def restart(self) -> None:
        self.process = self._start()
        until(lambda: self.process.is_ready, timeout_s=60)

    def state(self) -> tuple[int, str]:
        return self.process.probe("/readyz")

    def close(self) -> None:
        self.process.kill()
        self.cable.close()


class Pair:
    """Two replicas, and a worker whose jobs a test creates."""

    def __init__(self, server: PrivateApiServer, directory: Path) -> None:
        self.server, self.api = server, server.api
        self.namespace = server.api.namespace()
        install_definitions(server.api)
        release = Release(server.api, {"watchNamespace": self.namespace}, home=HOME)
        self.replicas = [Replica(release, f"operator-{number}", directory) for number in range(2)]
        for replica in self.replicas:
            until(lambda replica=replica: replica.process.is_ready, timeout_s=60)  # type: ignore[misc]
        self._worker = server.api.post(
            f"/apis/hypha.space/v1alpha1/namespaces/{self.namespace}/hyphaworkers", worker_manifest(self.namespace)
        )
        self.run_job()

    def leader(self) -> Replica:
        """Return the replica that leads now."""
        (leader,) = [replica for replica in self.replicas if replica.state() == (200, "leads")]
        return leader

    def run_job(self) -> float:
        """Create a HyphaJob; return the seconds until it has a pod."""
        task_id, started = uuid4(), time.monotonic()
        jobs = f"/apis/hypha.space/v1alpha1/namespaces/{self.namespace}/hyphajobs"
        self.api.post(jobs, job_manifest(self.namespace, self._worker, task_id))
        until(lambda: self.pods_of(task_id), timeout_s=60)
        return time.monotonic() - started

    def pods_of(self, task_id: UUID) -> list[object]:
        query = {"labelSelector": f"hypha.space/job={job_name(task_id)}"}
        with self.api.client() as client:
            return list(client.get(f"/api/v1/namespaces/{self.namespace}/pods", params=query).json()["items"])


HOME = "hypha-system"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    operator = f"system:serviceaccount:{HOME}:hypha-worker"
    policy = audit.policy(operator, JOB_CONTROLLER)
    with PrivateApiServer(tmp_path / "plane", controllers=True, audit_policy=policy) as server:
        _create_namespace(server.api, HOME)
        made = Pair(server, tmp_path)
        try:
            yield made
        finally:
            for replica in made.replicas:
                replica.close()


def _create_namespace(api: ApiServer, name: str) -> None:
    api.post("/api/v1/namespaces", {"metadata": {"name": name}})


@pytest.mark.timeout(180 + 60 * (KILLS + CUTS))
def test_a_lost_leader_is_succeeded_within_20_seconds_and_nothing_is_done_twice(pair: Pair) -> None:
    for _ in range(KILLS):
        leader = pair.leader()
        leader.process.kill()
        took_s = pair.run_job()
        print(f"killed: a new job has a pod after {took_s:.1f} s")
        assert took_s < MAX_S
        leader.restart()
    for number in range(CUTS):
        leader = pair.leader()
        leader.cable.cut(answers_only=number % 2 == 1)
        took_s = pair.run_job()
        print(f"cut off: a new job has a pod after {took_s:.1f} s")
        assert took_s < MAX_S
        assert pair.leader() is not leader
        leader.cable.mend()
        until(lambda leader=leader: "stands by" in leader.state()[1])  # type: ignore[misc]
        assert leader.process.process.poll() is None
    found = audit.writes(pair.server.audit_log)
    jobs = created(found, "jobs")
    assert len(jobs) == 1 + KILLS + CUTS
    assert {*jobs.values()} == {1}
    pods = [write for write in found if (write.verb, write.resource) == ("create", "pods")]
    assert len(pods) == len(jobs)
    assert out_of_turn(found, LEASE, {JOB_CONTROLLER}) == []
    assert len({write.replica for write in found if write.resource == "leases"}) == 2


def test_a_leader_that_is_stopped_hands_over_at_once(pair: Pair) -> None:
    leader = pair.leader()
    assert leader.process.end() == 0
    assert pair.run_job() < 6
    assert pair.leader() is not leader
