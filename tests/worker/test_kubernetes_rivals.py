"""Two controllers of one worker, of which the older one does not know yet that it was replaced."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from hypha_contracts.kubernetes_errors import Unavailable
from hypha_worker.errors import NodeError
from hypha_worker.job import Failed, Finished, Job, LaunchError, Started
from hypha_worker.runtimes.kubernetes.objects import ObservedJob
from support import jobs
from support.api_server import ApiServer
from support.hypha_jobs import Cluster, Rig, make_cluster, open_rig, until

pytestmark = pytest.mark.anyio

TAKEN_OVER = "another controller of this worker has taken over"


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path) -> Cluster:
    return make_cluster(api_server, tmp_path)


@contextmanager
def ended_by(reason: str) -> Iterator[None]:
    """A node inside ends, and this is why."""
    with pytest.raises(ExceptionGroup) as caught:
        yield
    assert caught.value.split(NodeError)[1] is None
    assert caught.group_contains(NodeError, match=reason)


def answers_for(rig: Rig, job: Job) -> bool:
    """Whether the HyphaJob of a job names a node."""
    return bool(rig.cluster.job(job.task_id)["spec"]["controller"] == str(rig.runtime._hypha_jobs.controller))


async def test_a_node_whose_jobs_another_one_adopts_ends_without_reports(cluster: Cluster) -> None:
    job = jobs.job()
    async with open_rig(cluster) as new:
        with ended_by(TAKEN_OVER):
            async with open_rig(cluster) as old:
                await old.runtime.adopt()
                await old.runtime.launch(job)
                assert answers_for(old, job)
                (adopted,) = await new.runtime.adopt()
                assert adopted.job.task_id == job.task_id
                await trio.sleep_forever()
        assert old.events == []
        assert answers_for(new, job)
        assert "cancel" not in cluster.job(job.task_id)["spec"]
        await new.runtime.extend(job.task_id, 4e9)
        await until(lambda: cluster.job(job.task_id)["spec"]["lease"]["deadline"].startswith("2096"))
        cluster.say(job.task_id, "Succeeded")
        assert await new.heard(1) == [Finished(job.task_id)]


@pytest.mark.parametrize("what", ["cancels", "renews"])
async def test_changes_of_a_replaced_node_are_refused(cluster: Cluster, what: str) -> None:
    job = jobs.job()
    async with open_rig(cluster) as new:
        with ended_by(TAKEN_OVER):
            async with open_rig(cluster) as old:  # it does not watch
                await old.runtime.launch(job)
                await new.runtime.adopt()
                await until(lambda: answers_for(new, job))
                before = cluster.job(job.task_id)["spec"]
                if what == "cancels":
                    await old.runtime.terminate(job.task_id, "its lease expired")
                else:
                    await old.runtime.extend(job.task_id, 4e9)
                await trio.sleep_forever()
        assert old.events == []
        assert cluster.job(job.task_id)["spec"] == before


async def test_a_node_replaced_during_a_broken_watch_ends(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.job()
    async with open_rig(cluster) as new:
        with ended_by(TAKEN_OVER):
            async with open_rig(cluster) as old:
                watching, broken = trio.Event(), trio.Event()

                async def watch(*_: Any) -> str:
                    watching.set()
                    await broken.wait()
                    monkeypatch.undo()
                    raise Unavailable("GET /", 0, "", "the watch broke")

                monkeypatch.setattr(old.runtime._hypha_jobs, "watch", watch)
                await old.runtime.adopt()
                await old.runtime.launch(job)
                await watching.wait()
                await new.runtime.adopt()
                await until(lambda: answers_for(new, job))
                cluster.say(job.task_id, "Failed", reason="OutOfMemory")
                broken.set()
                await trio.sleep_forever()
        assert old.events == []
        assert await new.heard(1) == [Failed(job.task_id, "OutOfMemory")]


async def test_earlier_changes_of_the_former_node_do_not_end_the_new_one(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.job()
    async with open_rig(cluster) as new, trio.open_nursery() as nursery:
        claim, may_claim = new.runtime._hypha_jobs.claim, trio.Event()

        async def claim_late(*arguments: Any) -> bool:
            await may_claim.wait()
            return await claim(*arguments)

        monkeypatch.setattr(new.runtime._hypha_jobs, "claim", claim_late)
        with ended_by(TAKEN_OVER):
            async with open_rig(cluster) as old:
                await old.runtime.adopt()
                await old.runtime.launch(job)
                await new.runtime.adopt()
                await old.runtime.extend(job.task_id, 4e9)
                await until(lambda: cluster.job(job.task_id)["spec"]["lease"]["deadline"].startswith("2096"))
                cluster.say(job.task_id, "Running")
                await new.heard(1)
                nursery.start_soon(new.runtime.terminate, job.task_id, "its lease expired")
                may_claim.set()
                await trio.sleep_forever()
        await until(lambda: cluster.job(job.task_id)["spec"].get("cancel"))
        cluster.say(job.task_id, "Failed", reason="Cancelled")
        assert await new.heard(2) == [Started(job.task_id), Failed(job.task_id, "Cancelled")]


async def test_jobs_that_another_node_launched_are_ignored(cluster: Cluster) -> None:
    strays, own = [jobs.job() for _ in range(2)], jobs.job()
    async with open_rig(cluster) as old, open_rig(cluster) as new:
        await new.runtime.adopt()
        for stray in strays:
            await old.runtime.launch(stray)
        cluster.say(strays[0].task_id, "Failed", reason="ExecutorFailed")
        await new.runtime.launch(own)
        cluster.say(own.task_id, "Succeeded")
        await new.heard(1)
        new.runtime.record_reported(own.task_id)
        await until(lambda: cluster.reported(own.task_id))
        assert not cluster.reported(strays[0].task_id)
        assert "cancel" not in cluster.job(strays[1].task_id)["spec"]


async def test_an_abandoned_launch_that_another_node_adopted_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, tried = jobs.job(), trio.Event()
    async with open_rig(cluster) as old, open_rig(cluster) as new:
        create, cancel = old.runtime._hypha_jobs.create, old.runtime._hypha_jobs.cancel

        async def create_unheard(job: Job) -> ObservedJob:
            await create(job)
            await new.runtime.adopt()
            await until(lambda: answers_for(new, job))
            raise Unavailable("GET /", 0, "", "no answer in time")

        async def try_to_cancel(*arguments: Any) -> bool:
            try:
                return await cancel(*arguments)
            finally:
                tried.set()

        monkeypatch.setattr(old.runtime._hypha_jobs, "create", create_unheard)
        monkeypatch.setattr(old.runtime._hypha_jobs, "cancel", try_to_cancel)
        with pytest.raises(LaunchError, match="no answer in time"):
            await old.runtime.launch(job)
        await tried.wait()
        assert "cancel" not in cluster.job(job.task_id)["spec"]
        cluster.say(job.task_id, "Succeeded")
        assert await new.heard(1) == [Finished(job.task_id)]
        assert old.events == []


async def test_jobs_that_ended_are_reported_by_the_next_node_without_being_claimed(cluster: Cluster) -> None:
    job = jobs.job()
    async with open_rig(cluster) as old:
        await old.runtime.launch(job)
    cluster.say(job.task_id, "Succeeded")
    before = cluster.job(job.task_id)["spec"]
    async with open_rig(cluster) as new:
        await new.runtime.adopt()
        assert await new.heard(1) == [Finished(job.task_id)]
        new.runtime.record_reported(job.task_id)
        await until(lambda: cluster.reported(job.task_id))
        assert cluster.job(job.task_id)["spec"] == before


async def test_definitions_without_the_controller_field_are_named_in_the_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = jobs.job()
    async with open_rig(cluster) as old:
        await old.runtime.launch(job)
    path = cluster.path("hyphajobs", f"hypha-{job.task_id}")
    cluster.call("PATCH", path, {"spec": {"controller": None}}, "application/merge-patch+json")

    async def claim_in_vain(*_: Any) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    with ended_by("Upgrade their custom resource definition"):
        async with open_rig(cluster) as new:
            monkeypatch.setattr(new.runtime._hypha_jobs, "claim", claim_in_vain)
            await new.runtime.adopt()
            await new.runtime.extend(job.task_id, 4e9)
            await trio.sleep_forever()
