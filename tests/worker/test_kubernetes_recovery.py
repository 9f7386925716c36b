"""A node whose API server goes away, falls silent or forgets what has been."""

import signal
from pathlib import Path
from uuid import UUID

import pytest
import trio

from hypha_contracts.backoff import Backoff
from hypha_contracts.kubernetes_errors import Unavailable
from hypha_messages.progress import Progress, Status
from hypha_worker.connector.http_server import HttpError
from hypha_worker.job import Failed, Finished, Job, LaunchError, Started
from hypha_worker.runtimes.kubernetes import api as kubernetes_api
from hypha_worker.runtimes.kubernetes import jobs as kubernetes_jobs
from hypha_worker.runtimes.kubernetes import tokens as kubernetes_tokens
from hypha_worker.runtimes.kubernetes.objects import ObservedJob
from support import jobs
from support.api_server import PrivateApiServer
from support.hypha_jobs import Cluster, make_cluster, open_rig, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Cluster:
    """A worker on the API server that the test itself stops, else on everybody's."""
    private = "private_api_server" in request.fixturenames
    server = request.getfixturevalue("private_api_server").api if private else request.getfixturevalue("api_server")
    return make_cluster(server, tmp_path)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_jobs, "_LAUNCH_S", 1.0)
    monkeypatch.setattr(kubernetes_tokens, "_DEADLINE_S", 0.5)
    monkeypatch.setattr(kubernetes_api, "_ATTEMPT_S", 1.0)
    monkeypatch.setattr(kubernetes_api, "_BACKOFF", Backoff(first_s=0.1, max_s=0.2))


async def stop(server: PrivateApiServer) -> None:
    await trio.to_thread.run_sync(lambda: server.processes.stop("kube-apiserver", grace_s=0))


async def start(server: PrivateApiServer) -> None:
    await trio.to_thread.run_sync(lambda: server.processes.start("kube-apiserver"))


async def test_jobs_outlast_an_api_server_that_is_away(private_api_server: PrivateApiServer, cluster: Cluster) -> None:
    async with open_rig(cluster) as rig, trio.open_nursery() as nursery:
        await rig.runtime.adopt()
        kept, ended = jobs.job(), jobs.job()
        for job in (kept, ended):
            await rig.runtime.launch(job)
            cluster.say(job.task_id, "Running")
        await rig.heard(2)
        token, _ = cluster.pod_token("pod")

        await stop(private_api_server)
        with pytest.raises(LaunchError, match="did not answer"):
            await rig.runtime.launch(jobs.job())
        with pytest.raises(HttpError) as caught:
            await rig.runtime.authenticate(token)
        assert caught.value.status == 503
        await rig.runtime.extend(kept.task_id, kept.deadline + 100)
        rig.runtime.record_progress(kept.task_id, Progress(status=Status(batch_size=8)))
        nursery.start_soon(rig.runtime.terminate, ended.task_id, "its lease expired")
        await trio.sleep(1)
        assert len(rig.events) == 2
        await start(private_api_server)

        await until(lambda: cluster.job(ended.task_id)["spec"].get("cancel"))
        await until(lambda: cluster.job(kept.task_id)["status"].get("progress", {}).get("samples") == 8)
        cluster.say(ended.task_id, "Failed", reason="Cancelled")
        cluster.say(kept.task_id, "Succeeded")
        assert set((await rig.heard(4))[2:]) == {Failed(ended.task_id, "Cancelled"), Finished(kept.task_id)}


async def test_changes_during_a_broken_watch_are_observed_afterwards(
    private_api_server: PrivateApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server answers nothing for a while, without closing a connection."""
    monkeypatch.setattr(kubernetes_api, "SILENCE_S", 1.0)
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job, deleted = jobs.job(), jobs.job()
        for launched in (job, deleted):
            await rig.runtime.launch(launched)
        private_api_server.processes.signal("kube-apiserver", signal.SIGSTOP)
        await trio.sleep(2.5)
        private_api_server.processes.signal("kube-apiserver", signal.SIGCONT)
        await until(lambda: cluster.job(job.task_id))
        cluster.say(job.task_id, "Running")
        cluster.delete(deleted.task_id)
        assert set(await rig.heard(2)) == {Started(job.task_id), Failed(deleted.task_id, "its HyphaJob was deleted")}


async def test_a_launch_with_an_unknown_outcome_is_cancelled(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the launch comes too late."""
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        create = rig.runtime._hypha_jobs.create

        async def create_unheard(job: Job) -> ObservedJob:
            await create(job)
            raise Unavailable("GET /", 0, "", "no answer in time")

        monkeypatch.setattr(rig.runtime._hypha_jobs, "create", create_unheard)
        job = jobs.job()
        with pytest.raises(LaunchError, match="no answer in time"):
            await rig.runtime.launch(job)
        await until(lambda: cluster.job(job.task_id)["spec"].get("cancel"))
        cluster.say(job.task_id, "Failed", reason="Cancelled")
        await until(lambda: cluster.reported(job.task_id))
        assert rig.events == []


async def test_a_launch_that_arrives_after_it_was_abandoned_is_cancelled(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        create, cancel = rig.runtime._hypha_jobs.create, rig.runtime._hypha_jobs.cancel
        found: list[bool] = []

        async def create_later(_job: Job) -> ObservedJob:
            raise Unavailable("GET /", 0, "", "no answer in time")

        async def cancel_at_once(task_id: UUID, reason: str) -> bool:
            found.append(await cancel(task_id, reason))
            return found[-1]

        monkeypatch.setattr(rig.runtime._hypha_jobs, "create", create_later)
        monkeypatch.setattr(rig.runtime._hypha_jobs, "cancel", cancel_at_once)
        job = jobs.job()
        with pytest.raises(LaunchError, match="no answer in time"):
            await rig.runtime.launch(job)
        await until(lambda: found == [False])
        await create(job)
        await until(lambda: cluster.job(job.task_id)["spec"].get("cancel"))
        assert rig.events == []


async def test_a_node_that_starts_without_an_api_server_waits_for_it(
    private_api_server: PrivateApiServer, cluster: Cluster
) -> None:
    async with open_rig(cluster) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
    await stop(private_api_server)
    async with open_rig(cluster) as rig, trio.open_nursery() as nursery:
        found = []

        async def adopt() -> None:
            found.extend(await rig.runtime.adopt())

        nursery.start_soon(adopt)
        await trio.sleep(1)
        assert found == []
        await start(private_api_server)
        await until(lambda: found)
        assert found[0].job.task_id == job.task_id


async def test_jobs_survive_the_temporary_loss_of_the_nodes_rights(cluster: Cluster) -> None:
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{cluster.namespace}/rolebindings"
    async with open_rig(cluster) as rig:
        await rig.runtime.adopt()
        job = jobs.job()
        await rig.runtime.launch(job)
        binding = cluster.call("GET", f"{rbac}/node")
        cluster.call("DELETE", f"{rbac}/node")
        await trio.sleep(0.5)
        await rig.runtime.extend(job.task_id, job.deadline + 100)
        cluster.say(job.task_id, "Running")
        del binding["metadata"]["resourceVersion"]
        cluster.call("POST", rbac, binding)
        assert await rig.heard(1) == [Started(job.task_id)]
        generation = cluster.job(job.task_id)["metadata"]["generation"]
        await until(lambda: generation > 1 or cluster.job(job.task_id)["metadata"]["generation"] > generation)
