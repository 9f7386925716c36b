"""Jobs as HyphaJobs on a real API server, with a few words of an operator said by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from hypha_messages.api import DispatchJob, DispatchJobOutcome
from hypha_messages.job import JobSpec
from hypha_messages.progress import Metrics, Progress, Status
from hypha_worker.job import Failed, Finished, Job, LaunchError, Started
from hypha_worker.market import ledger
from hypha_worker.market.lease_service import LeaseService
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.market.starts import StartRecord
from hypha_worker.runtimes.kubernetes.runtime import KubernetesRuntime
from hypha_worker.telemetry import Telemetry
from support import jobs
from support.api_server import ApiServer
from support.hypha_jobs import LEASE_S, PATIENCE_S, WORKER, Cluster, Rig, make_cluster, open_rig, secret_text, until
from support.worker import ALICE, HALF, TRAIN, WHOLE, Market, ledger_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path) -> Cluster:
    return make_cluster(api_server, tmp_path)


async def test_a_job_is_launched_runs_and_finishes(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        assert await rig.runtime.adopt() == []
        job = jobs.job(cpu=2, memory=4, gpu=8, storage=10)
        await rig.runtime.launch(job)
        made = cluster.job(job.task_id)
        assert made["metadata"]["labels"] == {"hypha.space/worker": WORKER}
        assert made["metadata"]["ownerReferences"][0]["uid"] == cluster.worker_uid
        assert made["spec"]["resources"] == {"cpu": 2, "memory": 4, "gpu": 8, "storage": 10}
        assert made["spec"]["lease"]["id"] == str(job.lease_id)
        secret = cluster.secret(job.task_id)
        assert secret_text(secret) == job.spec.model_dump(mode="json")
        assert secret["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
        for phase in ("Pending", "Starting", "Running", "Running", "Succeeded"):
            cluster.say(job.task_id, phase)
        assert await rig.heard(2) == [Started(job.task_id), Finished(job.task_id)]
        assert not cluster.reported(job.task_id)
        rig.runtime.record_reported(job.task_id)
        await until(lambda: cluster.reported(job.task_id))
        assert len(rig.events) == 2


async def test_the_hypha_job_shows_no_secrets_and_its_secret_has_them(cluster: Cluster) -> None:
    model = {"type": "huggingface", "repository": "org/private", "filenames": ["m"], "token": "hf_secret"}
    spec = jobs.train_spec(model={"task": "auto", "artifact": model, "input-names": []})
    async with open_rig(cluster) as rig:
        job = jobs.job(spec)
        await rig.runtime.launch(job)
        assert "hf_secret" not in str(cluster.job(job.task_id))
        assert "org/private" in str(cluster.job(job.task_id))
        assert (
            secret_text(cluster.secret(job.task_id))["executor"]["config"]["model"]["artifact"]["token"] == "hf_secret"
        )


async def test_a_failure_says_why_and_brings_the_last_lines(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        ready = {
            "type": "Ready",
            "status": "False",
            "reason": "OutOfMemory",
            "message": "it used more than 4 GB",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        cluster.say(job.task_id, "Failed", reason="OutOfMemory", lastLines=["loading", "Killed"], conditions=[ready])
        assert await rig.heard(1) == [Failed(job.task_id, "OutOfMemory: it used more than 4 GB", ("loading", "Killed"))]


async def test_a_terminated_job_ends(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig, trio.open_nursery() as nursery:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        ended = trio.Event()

        async def terminate() -> None:
            await rig.runtime.terminate(job.task_id, "its lease expired")
            ended.set()

        nursery.start_soon(terminate)
        await until(lambda: cluster.job(job.task_id)["spec"].get("cancel") == {"reason": "its lease expired"})
        assert not ended.is_set()
        cluster.say(job.task_id, "Failed", reason="Cancelled")
        await ended.wait()
        assert await rig.heard(1) == [Failed(job.task_id, "Cancelled")]


@pytest.mark.parametrize("how", ["deleted", "deleted while it is told to end"])
async def test_a_hypha_job_that_is_deleted_has_failed(cluster: Cluster, how: str) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        cluster.delete(job.task_id)
        if how != "deleted":
            await rig.runtime.terminate(job.task_id, "its lease expired")
        assert await rig.heard(1) == [Failed(job.task_id, "its HyphaJob was deleted")]
        rig.runtime.record_reported(job.task_id)
        await until(lambda: not rig.runtime._jobs)


async def test_renewals_are_written_at_intervals_and_the_last_one_always(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        before = int(cluster.job(job.task_id)["metadata"]["generation"])
        for number in range(1, 41):
            await rig.runtime.extend(job.task_id, job.deadline + number)
            await trio.sleep(0.01)
        last = int(job.deadline + 40)
        await until(lambda: cluster.deadline(job.task_id) == last)
        assert int(cluster.job(job.task_id)["metadata"]["generation"]) - before <= 3


async def test_progress_shows_in_the_status(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        for _ in range(3):
            rig.runtime.record_progress(job.task_id, Progress(status=Status(batch_size=8)))
        rig.runtime.record_progress(
            job.task_id, Progress(metrics=Metrics(round=2, metrics={"loss": 0.5, "bad": float("nan")}))
        )
        progress = await until(lambda: cluster.job(job.task_id).get("status", {}).get("progress"))
        assert (progress["round"], progress["batches"], progress["samples"]) == (2, 3, 24)
        assert progress["metrics"] == {"loss": 0.5}
        rig.runtime.record_progress(job.task_id, Progress(status=Status(batch_size=8)))
        cluster.say(job.task_id, "Succeeded")
        await rig.heard(1)
        rig.runtime.record_reported(job.task_id)
        await until(lambda: cluster.reported(job.task_id))
        status = cluster.job(job.task_id)["status"]
        assert (status["progress"]["samples"], status["progress"]["metrics"]) == (32, {"loss": 0.5})
        assert status["phase"] == "Succeeded"


async def test_an_ended_job_has_no_estimated_end(cluster: Cluster) -> None:
    job = jobs.job(lease_s=-100)
    async with open_rig(cluster) as rig:
        await rig.runtime.launch(job)
    estimated = {"batches": 5, "estimatedEnd": "2099-01-01T00:00:00Z"}
    cluster.say(job.task_id, "Running", podName="p", podUid="u", progress=estimated)
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        cluster.say(job.task_id, "Succeeded")
        await until(lambda: Finished(job.task_id) in rig.events)
        rig.runtime.record_reported(job.task_id)
        await until(lambda: cluster.reported(job.task_id))
    progress = cluster.job(job.task_id)["status"]["progress"]
    assert (progress["batches"], progress.get("estimatedEnd")) == (5, None)


async def test_jobs_that_outlived_the_node_are_adopted(cluster: Cluster) -> None:
    running, ended, told, old = (jobs.job(lease_s=-100) for _ in range(4))
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        for job in (running, ended, told, old):
            await rig.runtime.launch(job)
        cluster.say(running.task_id, "Running", podName="p", podUid="u")
        rig.runtime.record_progress(running.task_id, Progress(status=Status(batch_size=8)))
        await until(lambda: cluster.job(running.task_id)["status"].get("progress"))
        for job in (told, old):
            cluster.say(job.task_id, "Failed", reason="ExecutorFailed")
        await rig.heard(3)
        for job in (told, old):
            rig.runtime.record_reported(job.task_id)
        await until(lambda: cluster.reported(told.task_id) and cluster.reported(old.task_id))
    cluster.say(ended.task_id, "Failed", reason="NodeLost", completionTime="2026-01-02T03:04:05Z")
    cluster.say(told.task_id, "Succeeded")  # as if it had been a success, whose lease is still renewed

    async with open_rig(cluster) as rig:
        adopted = {found.job.task_id: found for found in await rig.runtime.adopt()}
        assert adopted.keys() == {running.task_id, ended.task_id, told.task_id}
        assert adopted[running.task_id].running
        assert not adopted[ended.task_id].running
        found = adopted[running.task_id].job
        assert replace(found, deadline=running.deadline, began=running.began) == running
        assert found.deadline == pytest.approx(time() + LEASE_S, abs=1)
        await until(lambda: cluster.deadline(running.task_id) == int(found.deadline))
        lost = Failed(ended.task_id, "NodeLost", start_failed=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp())
        assert set(await rig.heard(2)) == {lost, Finished(told.task_id)}
        rig.runtime.record_progress(running.task_id, Progress(status=Status(batch_size=8)))
        await until(lambda: cluster.job(running.task_id)["status"]["progress"]["samples"] == 16)
        cluster.say(running.task_id, "Succeeded")
        assert (await rig.heard(3))[2] == Finished(running.task_id)


async def test_jobs_of_an_earlier_worker_of_the_same_name_are_ignored(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
    successor = replace(cluster, worker_uid=str(uuid4()))
    async with open_rig(successor) as rig:
        assert await rig.runtime.adopt() == []


async def test_an_ended_task_is_not_launched_again(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        with pytest.raises(LaunchError, match="exists already"):
            await rig.runtime.launch(job)
        cluster.say(job.task_id, "Succeeded")
        await rig.heard(1)
        rig.runtime.record_reported(job.task_id)
        await until(lambda: cluster.reported(job.task_id))
        await until(lambda: not rig.runtime._jobs)
        with pytest.raises(LaunchError, match="exists already"):
            await rig.runtime.launch(job)


async def test_a_task_of_another_worker_is_not_taken_over(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig, open_rig(replace(cluster, worker_uid=str(uuid4()))) as other:
        job = jobs.job()
        await other.runtime.launch(job)
        with pytest.raises(LaunchError, match="never changes"):
            await rig.runtime.launch(job)
        assert "cancel" not in cluster.job(job.task_id)["spec"]


async def test_an_exhausted_quota_is_reported_with_its_remedy(cluster: Cluster) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/hyphajobs.hypha.space": "0"}}}
    made = cluster.call("POST", f"/api/v1/namespaces/{cluster.namespace}/resourcequotas", quota)
    used = {"status": {"hard": made["spec"]["hard"], "used": {"count/hyphajobs.hypha.space": "0"}}}
    path = f"/api/v1/namespaces/{cluster.namespace}/resourcequotas/none/status"
    cluster.call("PATCH", path, used, "application/merge-patch+json")
    async with open_rig(cluster) as rig:
        with pytest.raises(LaunchError, match="Raise the namespace's quota") as refusal:
            await rig.runtime.launch(jobs.job())
        assert not refusal.value.recorded
    assert cluster.jobs() == []


async def test_a_launch_without_the_role_is_refused_and_leaves_nothing(cluster: Cluster) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}"
    rules: list[dict[str, Any]] = [{"apiGroups": ["hypha.space"], "resources": ["hyphajobs"], "verbs": ["*"]}]
    cluster.call("PUT", f"{rbac}/roles/node", {"metadata": {"name": "node"}, "rules": rules})
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        with pytest.raises(LaunchError, match="Check that the node has its Role") as refusal:
            await rig.runtime.launch(job)
        assert refusal.value.recorded
        await until(lambda: "cancel" in cluster.job(job.task_id)["spec"])


async def test_a_scheduler_whose_launches_lack_their_secrets_leaves_a_limited_number_of_hypha_jobs(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MAX_ENDED_PER_SCHEDULER", 4)
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}/roles/node"
    rules = [rule for rule in cluster.call("GET", rbac)["rules"] if "secrets" not in rule["resources"]]
    cluster.call("PUT", rbac, {"metadata": {"name": "node"}, "rules": rules})
    async with open_rig(cluster) as rig:
        leases = ledger_of(WHOLE, time, temporary_s=PATIENCE_S, kept_s=3600)
        service = lease_service(leases, tmp_path, rig)
        leases.offer(ALICE, uuid4(), [TRAIN], HALF)
        for _ in range(8):
            outcome = await service.answer(ALICE, DispatchJob(id=uuid4(), spec=jobs.train_spec()))
            assert outcome == DispatchJobOutcome()
            leases.expire()
        assert len(cluster.jobs()) == 4


class Launching:
    """Starts jobs in a runtime."""

    def __init__(self, runtime: KubernetesRuntime) -> None:
        self.events, self.extend = runtime.events, runtime.extend
        self.terminate, self.record_reported = runtime.terminate, runtime.record_reported
        self._launch = runtime.launch

    async def start(self, lease: ledger.Lease, task_id: UUID, spec: JobSpec, scheduler: str) -> None:
        await self._launch(Job(task_id, lease.id, scheduler, spec, lease.resources, lease.deadline))


def lease_service(leases: ledger.Ledger, directory: Path, rig: Rig) -> LeaseService:
    """The node's service of leases, whose jobs the rig's runtime runs."""
    return LeaseService(
        Market(),
        leases,
        LedgerFile(directory / "leases.json"),
        Launching(rig.runtime),
        Telemetry(),
        starts=StartRecord(),
        on_offer_accepted=lambda _: None,
        on_offer_lapsed=lambda _: None,
        on_capacity_freed=lambda: None,
    )


async def test_a_token_authenticates_the_job_of_its_pod(cluster: Cluster) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        mine, other = jobs.job(), jobs.job()
        tokens = {}
        for job in (mine, other):
            await rig.runtime.launch(job)
            token, uid = cluster.pod_token(f"pod-{job.task_id}")
            assert await rig.runtime.authenticate(token) is None  # its pod is not known yet
            cluster.say(job.task_id, "Starting", podName=f"pod-{job.task_id}", podUid=uid)
            tokens[job.task_id] = token
        for task_id, token in tokens.items():
            await until_known(rig, token, task_id)
        cluster.say(mine.task_id, "Succeeded")
        await rig.heard(1)
        assert await rig.runtime.authenticate(tokens[mine.task_id]) is None
        assert await rig.runtime.authenticate(tokens[other.task_id]) == other.task_id


@pytest.mark.parametrize("what", ["another audience", "another account", "no pod", "not a token", "another pod", ""])
async def test_any_other_token_is_refused(cluster: Cluster, what: str) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        token, uid = cluster.pod_token("pod")
        cluster.say(job.task_id, "Running", podName="pod", podUid=uid)
        await until_known(rig, token, job.task_id)
        if what == "another audience":
            token, _ = cluster.pod_token("pod-2", audience="api")
        elif what == "another account":
            token, _ = cluster.pod_token("pod-2", account="w-controller")
        elif what == "no pod":
            token = cluster.server.token(cluster.namespace, "w-job", ["hypha-connector"])
        elif what == "another pod":
            token, _ = cluster.pod_token("pod-2")
        else:
            token = what
        assert await rig.runtime.authenticate(token) is None


async def until_known(rig: Rig, token: str, task_id: UUID) -> None:
    """Ask again and again, until a token is that of a task."""
    while await rig.runtime.authenticate(token) != task_id:
        await trio.lowlevel.checkpoint()
