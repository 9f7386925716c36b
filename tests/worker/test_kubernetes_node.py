"""A whole node in a cluster: its own process, a real API server, a gateway and a scheduler of this process."""

import copy
import json
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from hypha_bridge.connector import Connector as Client
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_devnet.client import Lease
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_network.identity import Identity
from support.api_server import ApiServer
from support.certs import Pki
from support.hypha_jobs import WORKER, Cluster, make_cluster, until
from support.jobs import STRANGER, train_spec
from support.networks import DEADLINE_S, direct_address, gateway, member
from support.node_process import NodeProcess, Scheduler

pytestmark = pytest.mark.anyio


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path) -> Cluster:
    return make_cluster(api_server, tmp_path)


@dataclass
class Stage:
    """A node in a cluster, and its scheduler."""

    cluster: Cluster
    node: NodeProcess
    scheduler: Scheduler
    port: int

    @property
    def peer_id(self) -> str:
        files = [self.node.directory / f"worker-{kind}.pem" for kind in ("cert", "key", "trust")]
        return Identity.load(*files).peer_id

    async def running_job(self) -> tuple[Lease, UUID]:
        """Have a job run; its lease and task."""
        lease = await self.scheduler.lease()
        task_id = uuid4()
        spec = train_spec(data={"type": "scheduler", "peer": self.scheduler.network.peer_id, "dataset": "digits"})
        assert await self.scheduler.dispatch(lease, spec, task_id)
        self.cluster.say(task_id, "Running")
        await until(lambda: f"task {task_id}: its executor runs" in self.node.log)
        return lease, task_id

    def restart(self, *, how: signal.Signals = signal.SIGKILL, forgetful: bool = True) -> None:
        """Replace the pod: nothing that it wrote to its disk is left."""
        self.node.signal(how)
        self.node.close()
        if forgetful:
            shutil.rmtree(self.node.work_dir)
        self.node.start()

    @contextmanager
    def successor(self) -> Iterator[NodeProcess]:
        """Run another pod of the same controller beside this one, on another host."""
        with TemporaryDirectory() as directory:
            node = copy.copy(self.node)
            node.directory = Path(shutil.copytree(self.node.directory, Path(directory) / "node"))
            shutil.rmtree(node.work_dir)
            node.config = node.directory / self.node.config.name
            node.config.write_text(node.config.read_text().replace(str(self.port), str(free_port())))
            node.start()
            try:
                yield node
            finally:
                node.close()

    async def ready(self) -> None:
        await until(lambda: self.cluster.worker().get("status", {}).get("node", {}).get("healthy"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def stage(cluster: Cluster, *, lease_s: float = 5.0, **table: Any) -> AsyncIterator[Stage]:
    pki, port = Pki(), free_port()
    kubernetes = {"namespace": cluster.namespace, "worker": WORKER, "worker_uid": cluster.worker_uid}
    tables = {"kubernetes": kubernetes | {"connector_port": port} | table, "leases": {"duration_s": lease_s}}
    with trio.fail_after(DEADLINE_S), TemporaryDirectory() as directory:
        async with gateway(pki) as entry, member(pki, "scheduler", entry) as network:
            node = NodeProcess(pki, Path(directory), direct_address(entry), "", **tables)
            node.environ = {
                "HYPHA_KUBE_URL": cluster.access.url,
                "HYPHA_KUBE_TOKEN_FILE": str(cluster.access.token_file),
                "HYPHA_KUBE_CA_FILE": str(cluster.access.ca_file),
                "HYPHA_KUBERNETES__POD_NAME": "w-controller-1-2",
            }
            node.start()
            try:
                yield Stage(cluster, node, Scheduler(network), port)
            except BaseException:
                print(node.log)
                raise
            finally:
                node.close()


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
        s.node.config.write_text(
            s.node.config.read_text().replace("[kubernetes]", "[kubernetes]\naccept_offers = false")
        )
        s.restart(how=signal.SIGTERM)
        await renewed(s, lease)
        cluster.say(task_id, "Succeeded")
        assert (await s.scheduler.status()).status.type == "Finished"
        requests = []
        with trio.move_on_after(1):
            while True:
                requests.append(await s.scheduler.ask())
                await trio.sleep(0.1)
        assert requests
        assert not any(request.offers for request in requests)


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
