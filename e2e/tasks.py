"""Tasks that contain their program, and a scheduler for them in a thread of its own.

Workers have an executor (`RUNNER`) that runs the first of a job's `input-names` as Python, with the others as `args`.
"""

import threading
import time
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

import trio

from e2e.kube import eventually
from hypha_devnet.client import Lease, Offer, SchedulerClient, Wanted
from hypha_devnet.roles.node import healthy
from hypha_messages.advertisement import WorkerSpec
from hypha_messages.api import ReportJobStatus
from hypha_messages.job import ExecutorDescriptor, JobSpec
from hypha_messages.progress import ProgressResponse, ReportProgress
from hypha_messages.types import Resources
from hypha_network.identity import Identity
from hypha_network.network import NetworkConfig, open_network

RUNNER: Final = ["python3", "-u", "-c", """
import json, os
job = json.load(open(os.environ["JOB_FILE"]))
program, *args = job["executor"]["config"]["model"]["input-names"]
exec(compile(program, "program", "exec"), {"args": args})
"""]  # fmt: skip
WAITER: Final = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
print("waiting", flush=True)
time.sleep(float(args[0]))
"""
"""A program that waits for a number of seconds, or until SIGTERM."""

SMALL: Final = Resources(cpu=0.1, memory=0.2, storage=0.1)
_OFFER_S: Final = 1.5
_HIRE_S: Final = 60


@dataclass
class Task:
    """A task; `statuses` are those that its worker has reported."""

    id: UUID
    lease: Lease
    statuses: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of its HyphaJob."""
        return f"hypha-{self.id}"

    def ended(self, timeout_s: float = 90) -> str:
        """Wait until its worker reports its end; return Finished or Failed."""

        def end() -> str:
            return next((status for status in self.statuses if status in ("Finished", "Failed")), "")

        return eventually(f"the worker has reported the end of {self.name}", end, timeout_s, 0.1)

    @property
    def lease_lost(self) -> bool:
        """Whether the lease has ended although it should have been renewed."""
        return self.lease.refused or (not self.lease.abandoned and time.time() > self.lease.expires)


class Tasks:
    """A scheduler.

    Args:
        identity: its identity.
        gateway: the address of the network's gateway.
        host: the address to listen at.
    """

    def __init__(self, identity: Identity, gateway: str, host: str) -> None:
        self._identity = identity
        self._config = NetworkConfig(
            gateways=(gateway,), listen_addresses=(f"/ip4/{host}/tcp/0",), exclude_cidr=(), relay_circuit=True
        )
        self._tasks: dict[UUID, Task] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._client: SchedulerClient
        self._nursery: trio.Nursery
        self._over: trio.Event

    def start(self) -> None:
        """Join the network."""
        self._thread.start()
        assert self._ready.wait(60), "the scheduler of the cases did not join the network"

    def stop(self) -> None:
        """Leave the network; leases expire."""
        self._token.run_sync_soon(self._over.set)
        self._thread.join(10)

    def run(
        self,
        worker: str,
        program: str,
        *args: str,
        resources: Resources = SMALL,
        executor: str = "program",
        peer: str | None = None,
    ) -> Task:
        """Dispatch a program to a worker (a peer id); return once the worker has accepted the task.

        The job may exchange files with one peer: this scheduler, unless another is given.
        """
        spec = self._spec(program, args, executor, peer or self._identity.peer_id)
        task: Task = trio.from_thread.run(self._run, worker, spec, resources, trio_token=self._token)
        return task

    def offers(self, worker: str) -> bool:
        """Advertise once; return whether this worker makes an offer."""
        return trio.from_thread.run(self._offers, worker, trio_token=self._token)

    def healthy(self, worker: str) -> bool:
        """Ask a node for its health over the network."""
        return trio.from_thread.run(healthy, self._client.network, worker, trio_token=self._token)

    def abandon(self, task: Task) -> None:
        """Stop renewing its lease."""
        task.lease.abandoned = True

    async def _main(self) -> None:
        async with open_network(self._identity, self._config) as network, trio.open_nursery() as nursery:
            self._nursery, self._over = nursery, trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            self._client = SchedulerClient(network, on_status=self._on_status, on_progress=_go_on)
            await network.wait_ready()
            self._ready.set()
            await self._over.wait()
            nursery.cancel_scope.cancel()

    def _on_status(self, _peer: str, report: ReportJobStatus) -> None:
        if task := self._tasks.get(report.task_id):
            task.statuses.append(report.status.type)
            task.lease.abandoned = task.lease.abandoned or report.status.type != "Running"

    async def _offers(self, worker: str) -> bool:
        def choose(offers: list[Offer]) -> list[Offer]:
            return [offer for offer in offers if offer.peer_id == worker]

        return bool(await self._client.collect(_wanted(SMALL, "program"), choose, within_s=_OFFER_S))

    async def _run(self, worker: str, spec: JobSpec, resources: Resources) -> Task:
        with trio.fail_after(_HIRE_S):
            lease = await self._client.hire(_wanted(resources, spec.descriptor.name), worker, within_s=_OFFER_S)
        task = Task(uuid4(), lease)
        self._tasks[task.id] = task
        self._nursery.start_soon(self._client.keep, lease)
        accepted = await self._client.dispatch_until_answered(lease, spec, task.id)
        assert accepted, f"{worker} refused the dispatch"
        return task

    def _spec(self, program: str, args: tuple[str, ...], executor: str, peer: str) -> JobSpec:
        peers = {"type": "peers", "peers": [peer], "strategy": {"type": "All"}}
        config = {
            "model": {
                "task": "auto",
                "artifact": {"type": "uri", "value": "https://example.org/model"},
                "input-names": [program, *args],
            },
            "data": {"type": "scheduler", "peer": self._identity.peer_id, "dataset": "none"},
            "updates": peers,
            "results": peers,
            "optimizer": {"learning-rate": 0.001},
            "batch_size": 1,
        }
        descriptor = {"class": "train", "descriptor": {"name": executor}, "config": config}
        return JobSpec.model_validate({"job_id": str(uuid4()), "executor": descriptor})


async def _go_on(_peer: str, _report: ReportProgress) -> ProgressResponse:
    return ProgressResponse(type="Continue")


def _wanted(resources: Resources, executor: str) -> Wanted:
    return Wanted(WorkerSpec(resources=resources, executor=[ExecutorDescriptor(class_="train", name=executor)]))
