"""A node of a cluster in its own process, with a real API server, and a gateway and a scheduler in this process."""

import copy
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import trio

from hypha_devnet.client import Lease
from hypha_devnet.ports import free_port
from hypha_network.identity import Identity
from support.certs import Pki
from support.hypha_jobs import WORKER, Cluster, until
from support.jobs import train_spec
from support.networks import DEADLINE_S, direct_address, gateway, member
from support.node_process import NodeProcess, Scheduler

RESOURCES = {"cpu": "1", "memory": "2G", "storage": "2G", "gpu": {"count": 1, "memory": "1G"}}
"""`CAPACITY` in the form of a HyphaWorker."""
PROVEN = {"enabled": True, "provenAt": "2036-01-01T00:00:00Z"}
"""What the operator writes once an executor has started."""


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
            without_state = shutil.ignore_patterns(self.node.work_dir.name)
            node.directory = Path(shutil.copytree(self.node.directory, Path(directory) / "node", ignore=without_state))
            node.config = node.directory / self.node.config.name
            node.config.write_text(node.config.read_text().replace(str(self.port), str(free_port())))
            node.start()
            try:
                yield node
            finally:
                node.close()

    async def ready(self) -> None:
        await until(lambda: self.cluster.worker().get("status", {}).get("node", {}).get("healthy"))


@asynccontextmanager
async def stage(
    cluster: Cluster, *, lease_s: float = 5.0, environ: Mapping[str, str] | None = None, **table: Any
) -> AsyncIterator[Stage]:
    pki, port = Pki(), free_port()
    cluster.change(resources=RESOURCES, leases={"durationSeconds": int(lease_s)})
    cluster.permit(PROVEN)
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
                **(environ or {}),
            }
            node.start()
            try:
                yield Stage(cluster, node, Scheduler(network), port)
            except BaseException:
                print(node.log)
                raise
            finally:
                node.close()
