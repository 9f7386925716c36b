"""A whole node in a cluster: its own process, a real API server, a gateway and a scheduler of this process."""

import json
import signal
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from hypha_bridge.connector import Connector as Client
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_devnet.client import Lease
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.types import Resources
from support.api_server import ApiServer
from support.certs import Pki
from support.cluster_node import PROVEN, Stage, stage
from support.hypha_jobs import Cluster, make_cluster, until
from support.jobs import STRANGER, train_spec
from support.networks import DEADLINE_S

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path) -> Cluster:
    return make_cluster(api_server, tmp_path)


async def test_a_job_from_its_request_to_its_end(cluster: Cluster, tmp_path: Path) -> None:
    async with stage(cluster) as s:

        async def answer(_peer: str, _report: ReportProgress) -> ProgressResponse:
            return ProgressResponse(type="Continue")

        s.scheduler.network.handle(PROGRESS, answer)
        lease, task_id = await s.running_job()
        token, uid = cluster.pod_token("pod")
        cluster.say(task_id, "Running", podName="pod", podUid=uid)
        (tmp_path / "token").write_text(token)
        bridge = Client(
            ConnectorConfig(url=f"https://localhost:{s.port}", peer_id=lease.peer_id, token_file=tmp_path / "token")
        )
        status = {"status": {"batch_size": 8}}
        told = await trio.to_thread.run_sync(partial(bridge.retrying, partial(bridge.progress, status)))
        assert json.loads(told) == {"type": "Continue"}
        await until(lambda: cluster.job(task_id)["status"].get("progress", {}).get("samples") == 8)
        cluster.say(task_id, "Succeeded")
        report = await s.scheduler.status()
        assert (report.task_id, report.status.type) == (task_id, "Finished")
        await until(lambda: cluster.reported(task_id))
        await s.scheduler.lease()


async def test_the_hypha_worker_shows_the_state_of_its_node(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        await s.ready()
        _, task_id = await s.running_job()
        await until(lambda: cluster.worker()["status"]["node"].get("activeJobs"))
        node = cluster.worker()["status"]["node"]
        assert (node["peerId"], node["connectedGateways"], len(node["gateways"])) == (s.peer_id, 1, 1)
        assert (node["activeLeases"], node["activeJobs"]) == (1, 1)
        assert node["allocated"] == {"cpu": 1, "gpu": 1, "memory": 2, "storage": 2}
        assert node["podName"] == "w-controller-1-2"
        assert node["reach"] == "public"
        assert node["certificateExpires"] > "2026"
        assert "problem" not in node
        cluster.say(task_id, "Failed", reason="ExecutorFailed", lastLines=["no such dataset"])
        assert (await s.scheduler.status()).status.type == "Failed"
        await until(lambda: cluster.worker()["status"]["node"]["activeJobs"] == 0)
        assert "no such dataset" in s.node.log


@pytest.mark.parametrize("forgetful", [True, False])
async def test_a_killed_node_finds_its_jobs_and_their_leases_again(cluster: Cluster, forgetful: bool) -> None:
    async with stage(cluster) as s:
        lease, task_id = await s.running_job()
        s.restart(forgetful=forgetful)
        await until(lambda: f"adopted job {task_id}" in s.node.log)
        await renewed(s, lease)
        assert "cancel" not in cluster.job(task_id)["spec"]
        cluster.say(task_id, "Succeeded")
        assert (await s.scheduler.status()).status.type == "Finished"


async def test_a_node_that_lives_beside_its_successor_ends_and_its_job_goes_on(cluster: Cluster) -> None:
    async with stage(cluster, lease_s=60) as s:
        lease, task_id = await s.running_job()
        with s.successor() as successor:
            assert await s.node.ended() == 1
            assert "error: another controller of this worker has taken over" in s.node.log
            assert f"adopted job {task_id}" in successor.log
            await renewed(s, lease)
            assert "cancel" not in cluster.job(task_id)["spec"]
            with pytest.raises(trio.WouldBlock):
                s.scheduler.statuses.receive_nowait()
            cluster.say(task_id, "Succeeded")
            assert (await s.scheduler.status()).status.type == "Finished"


async def test_a_new_pod_knows_exactly_the_leases_without_a_job(cluster: Cluster) -> None:
    def kept() -> list[str]:
        return [lease["id"] for lease in cluster.worker()["status"]["node"]["leases"]]

    async with stage(cluster) as s:
        lease = await s.scheduler.lease()
        assert kept() == [str(lease.id)]
        await s.ready()
        s.restart(how=signal.SIGTERM)
        await renewed(s, lease)
        assert kept() == [str(lease.id)]
        task_id = uuid4()
        assert await s.scheduler.dispatch(lease, train_spec(), task_id)
        await until(lambda: not kept())
        s.restart(how=signal.SIGTERM)
        await renewed(s, lease)
        assert not kept()
        assert cluster.job(task_id)["spec"]["lease"]["id"] == str(lease.id)


async def test_jobs_go_on_after_sigterm(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        lease, task_id = await s.running_job()
        before = time.monotonic()
        s.node.signal(signal.SIGTERM)
        assert await s.node.ended() == 0
        assert time.monotonic() - before < 10
        assert "cancel" not in cluster.job(task_id)["spec"]
        assert cluster.job(task_id)["status"]["phase"] == "Running"
        s.restart()
        await renewed(s, lease)


async def test_a_job_that_ended_without_a_node_is_reported(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        lease, task_id = await s.running_job()
        s.node.signal(signal.SIGKILL)
        await s.node.ended()
        cluster.say(task_id, "Succeeded")
        s.restart()
        assert (await s.scheduler.status()).status.type == "Finished"
        await until(lambda: cluster.reported(task_id))
        s.restart()
        await renewed(s, lease)  # as the reference scheduler does for a while


async def test_a_suspended_node_makes_no_offers_and_keeps_its_leases(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        lease, task_id = await s.running_job()
        cluster.change(suspend=True)
        await until(lambda: "the worker is suspended" in s.node.log)
        await renewed(s, lease)
        cluster.say(task_id, "Succeeded")
        assert (await s.scheduler.status()).status.type == "Finished"
        assert await offered(s, within_s=1) is None
        cluster.change(suspend=False)
        assert await offered(s) is not None


async def test_price_share_and_lists_apply_to_the_running_node(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        assert await offered(s) == 100
        cluster.change(offer={"price": 250, "floor": 1})
        await until(lambda: "reloaded: offer.price" in s.node.log)
        assert await offered(s) == 250
        cluster.change(schedulers={"block": [s.scheduler.network.peer_id]})
        await until(lambda: "reloaded: schedulers.block" in s.node.log)
        assert await offered(s, within_s=1) is None
        last = await until(lambda: cluster.worker()["status"]["node"]["requests"].get("lastRefusal"))
        assert last["reason"] == "SchedulerBlocked"
        cluster.change(schedulers=None, resources={"cpu": "2", "perJob": {"cpu": "1500m"}})
        await until(lambda: cluster.worker()["status"]["node"]["requests"]["refused"] == 0)
        await until(lambda: "resources.per_job" in s.node.log)
        assert (await s.scheduler.lease(Resources(cpu=1))).offer.message.resources.cpu == 1.5
        assert s.node.log.count("subscribed to hypha/worker,") == 1, "the node was restarted"


async def test_a_node_makes_no_offers_before_the_operator_permits_them_and_at_most_what_it_permits(
    cluster: Cluster,
) -> None:
    async with stage(cluster) as s:
        await s.ready()
        cluster.permit(None)
        await until(lambda: "no offers, because jobs could not run" in s.node.log)
        assert await offered(s, within_s=1) is None
        cluster.permit(PROVEN | {"limit": {"cpu": 0.5, "memory": 2, "storage": 2, "gpu": 1}})
        cluster.change(offer={"minimum": {"cpu": "100m"}})
        assert (await s.scheduler.lease(Resources(cpu=0.5))).offer.message.resources.cpu == 0.5
        cluster.permit({"enabled": False, "provenAt": "2026-01-01T00:00:00Z"})
        await until(lambda: s.node.log.count("no offers, because jobs could not run") == 2)


async def test_two_jobs_that_do_not_start_stop_the_offers_until_a_probe_has_started(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        cluster.permit({"enabled": True, "provenAt": None})
        for _ in range(2):
            lease, task_id = await s.scheduler.lease(), uuid4()
            assert await s.scheduler.dispatch(lease, train_spec(), task_id)
            cluster.say(task_id, "Failed", reason="ImagePull")
            assert (await s.scheduler.status()).status.type == "Failed"
        await until(lambda: "jobs do not start" in s.node.log)
        assert await offered(s, within_s=1) is None
        cluster.permit(PROVEN | {"provenAt": datetime.now(UTC).isoformat()})
        assert await offered(s) is not None


async def test_a_job_is_ended_once_it_has_run_for_as_long_as_it_may(cluster: Cluster) -> None:
    async with stage(cluster, lease_s=60) as s:
        _, task_id = await s.running_job()
        cluster.change(jobs={"maxDurationSeconds": 10})
        await until(lambda: "it ran for 10 s" in cluster.job(task_id)["spec"].get("cancel", {}).get("reason", ""))
        cluster.say(task_id, "Failed", reason="Cancelled")
        assert (await s.scheduler.status()).status.type == "Failed"


async def test_the_deadline_of_a_suspended_worker_ends_its_jobs(cluster: Cluster) -> None:
    async with stage(cluster, lease_s=60) as s:
        _, task_id = await s.running_job()
        cluster.change(suspend=True, suspendDeadline=datetime.now(UTC).isoformat())
        await until(lambda: "suspended" in cluster.job(task_id)["spec"].get("cancel", {}).get("reason", ""))
        cluster.say(task_id, "Failed", reason="Cancelled")
        assert (await s.scheduler.status()).status.type == "Failed"


async def test_what_a_scheduler_has_leased_is_counted_and_survives_the_pod(cluster: Cluster) -> None:
    def accounts() -> list[dict[str, object]]:
        return list(cluster.worker()["status"]["node"].get("accounts") or [])

    async with stage(cluster, lease_s=60) as s:
        _, task_id = await s.running_job()
        lease = cluster.job(task_id)["spec"]["lease"]
        assert lease["price"] == 100
        assert lease["accepted"] <= cluster.job(task_id)["metadata"]["creationTimestamp"]
        s.restart()
        await until(lambda: f"adopted job {task_id}" in s.node.log)
        cluster.say(task_id, "Succeeded")
        assert (await s.scheduler.status()).status.type == "Finished"
        (account,) = await until(accounts)
        assert (account["scheduler"], account["leases"]) == (s.scheduler.network.peer_id, 1)
        assert account["earned"] == pytest.approx(100 * account["leasedSeconds"])
        await until(lambda: cluster.reported(task_id))
        s.restart()
        await s.scheduler.lease()
        assert accounts() == [account], "a job that ended before the restart was counted again"


async def test_a_lease_that_is_not_renewed_ends_its_job(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        _, task_id = await s.running_job()
        await until(lambda: cluster.job(task_id)["spec"].get("cancel") == {"reason": "its lease expired"})
        cluster.say(task_id, "Failed", reason="Cancelled")
        assert (await s.scheduler.status()).status.type == "Failed"
        await s.scheduler.lease()


async def test_another_identity_than_the_workers_own_is_refused(cluster: Cluster) -> None:
    async with stage(cluster, peer_id=STRANGER) as s:
        assert await s.node.ended() == 1
        problem = cluster.worker()["status"]["node"]["problem"]
        assert f"belongs to {s.peer_id}, but this worker is {STRANGER}" in problem
        assert "allowPeerIdChange" in problem
        assert "error: " in s.node.log


async def test_a_key_that_changes_under_a_running_node_is_not_used(cluster: Cluster) -> None:
    async with stage(cluster) as s:
        await s.ready()
        Pki().files("worker", s.node.directory)
        await until(lambda: cluster.worker()["status"]["node"].get("problem"))
        node = cluster.worker()["status"]["node"]
        assert "renew the certificate with the same key" in node["problem"]
        assert node["healthy"]
        assert node["peerId"] != s.peer_id


async def renewed(s: Stage, lease: Lease) -> None:
    """Renew as a scheduler does that has not heard from the worker for a moment."""
    with trio.fail_after(DEADLINE_S):
        while True:
            try:
                assert await s.scheduler.renew(lease)
            except Exception as error:
                if isinstance(error, AssertionError):
                    raise
                await trio.sleep(0.1)
            else:
                return


async def offered(s: Stage, *, within_s: float = DEADLINE_S) -> float | None:
    """Ask until the worker makes an offer, and return its price; None if it makes none in this time."""
    requests = []  # an offer may answer an older one, because the worker has a single lease to offer
    with trio.move_on_after(within_s):
        while not any(request.offers for request in requests):
            requests.append(await s.scheduler.ask())
            await trio.sleep(0.2)
    return next((request.offers[0].message.price for request in requests if request.offers), None)
