"""Tasks whose program comes with them: a scheduler in a thread of its own, asked from the cases.

Workers have an executor (`RUNNER`) that runs the Python text in a job's `input-names`, with the rest of them as `args`.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import trio

from e2e.kube import eventually
from hypha_messages import advertisement
from hypha_messages.advertisement import TOPIC, RequestWorker, WorkerSpec
from hypha_messages.api import (
    API,
    DispatchJob,
    DispatchJobOutcome,
    RenewLease,
    RenewLeaseOutcome,
    ReportJobStatus,
    ReportJobStatusReceived,
    WorkerOffer,
    WorkerOfferAccepted,
)
from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_messages.job import ExecutorDescriptor, JobSpec
from hypha_messages.types import Message, Resources, SystemTime
from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network

logger = logging.getLogger(__name__)

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
"""A program that waits so many seconds, or until it is told to end."""

SMALL: Final = Resources(cpu=0.1, memory=0.2, storage=0.1)
_REQUEST_S: Final = 5.0
_OFFER_S: Final = 1.5
_RETRY_S: Final = 0.5


@dataclass
class Task:
    """One of them; `statuses` is what its worker has told, `expires` when its lease does (wall clock)."""

    id: UUID
    lease: UUID
    worker: str
    expires: float
    statuses: list[str] = field(default_factory=list)
    renewing: bool = True
    refused: bool = False

    @property
    def name(self) -> str:
        """The name of its HyphaJob."""
        return f"hypha-{self.id}"

    def ended(self, timeout_s: float = 90) -> str:
        """Wait for word of its end: Finished or Failed."""
        said = ("Finished", "Failed")
        return (
            eventually(
                f"word of the end of {self.name}",
                lambda: next((status for status in self.statuses if status in said), None),
                timeout_s,
                0.1,
            )
            or ""
        )

    @property
    def lease_lost(self) -> bool:
        """Whether the lease is over though it was to be renewed."""
        return self.refused or (self.renewing and time.time() > self.expires)


class Tasks:
    """A scheduler.

    Args:
        identity: who it is.
        gateway: where the network is.
        host: the address to listen at.
    """

    def __init__(self, identity: Identity, gateway: str, host: str) -> None:
        self._identity = identity
        self._config = NetworkConfig(
            gateways=(gateway,), listen_addresses=(f"/ip4/{host}/tcp/0",), exclude_cidr=(), relay_circuit=True
        )
        self._offers: dict[UUID, list[tuple[str, WorkerOffer]]] = {}
        self._tasks: dict[UUID, Task] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main), daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._network: Network
        self._nursery: trio.Nursery
        self._over: trio.Event

    def start(self) -> None:
        """Join the network."""
        self._thread.start()
        assert self._ready.wait(60), "the scheduler of the cases did not join the network"

    def stop(self) -> None:
        """Leave it; leases lapse."""
        self._token.run_sync_soon(self._over.set)
        self._thread.join(10)

    def run(
        self,
        worker: str,
        program: str,
        *args: str,
        resources: Resources = SMALL,
        executor: str = "program",
        timeout_s: float = 60,
    ) -> Task:
        """Have a worker (a peer id) run a program; returns once it has accepted."""
        spec = self._spec(program, args, executor)
        task: Task = trio.from_thread.run(self._run, worker, spec, resources, timeout_s, trio_token=self._token)
        return task

    def offers(self, worker: str, resources: Resources = SMALL, executor: str = "program") -> bool:
        """Ask once; whether this worker offers."""
        return trio.from_thread.run(self._ask, worker, resources, executor, trio_token=self._token) is not None

    def healthy(self, worker: str) -> bool:
        """Ask a node for its health over the network."""
        return trio.from_thread.run(self._healthy, worker, trio_token=self._token)

    def abandon(self, task: Task) -> None:
        """Renew its lease no more."""
        task.renewing = False

    async def _main(self) -> None:
        async with open_network(self._identity, self._config) as network, trio.open_nursery() as nursery:
            self._network, self._nursery, self._over = network, nursery, trio.Event()
            self._token = trio.lowlevel.current_trio_token()
            network.handle(API, self._answer)
            await network.wait_ready()
            self._ready.set()
            await self._over.wait()
            nursery.cancel_scope.cancel()

    async def _answer(self, peer: str, request: Message) -> Message | None:
        match request:
            case WorkerOffer():
                self._offers.setdefault(request.request_id, []).append((peer, request))
                return WorkerOfferAccepted()
            case ReportJobStatus():
                if task := self._tasks.get(request.task_id):
                    task.statuses.append(request.status.type)
                    task.renewing = task.renewing and request.status.type == "Running"
                return ReportJobStatusReceived()
        return None

    async def _ask(self, worker: str, resources: Resources, executor: str) -> WorkerOffer | None:
        wanted = RequestWorker(
            id=uuid4(),
            spec=WorkerSpec(resources=resources, executor=[ExecutorDescriptor(class_="train", name=executor)]),
            timeout=SystemTime.from_timestamp(time.time() + _REQUEST_S),
            bid=100,
        )
        await self._network.wait_until(lambda: bool(self._network.subscribers(TOPIC)))
        await self._network.publish(TOPIC, advertisement.encode(wanted))
        with trio.move_on_after(_OFFER_S):
            while True:
                for peer, offer in self._offers.get(wanted.id, ()):
                    if peer == worker:
                        return offer
                await trio.sleep(0.02)
        return None

    async def _run(self, worker: str, spec: JobSpec, resources: Resources, timeout_s: float) -> Task:
        with trio.fail_after(timeout_s):
            while True:
                try:
                    offer = await self._ask(worker, resources, spec.descriptor.name)
                    if offer is not None:
                        task = Task(uuid4(), offer.id, worker, offer.timeout.timestamp)
                        if await self._renew(task):
                            break
                except NetworkError as error:
                    logger.warning("no offer of %s yet: %s", worker, error)
                    await trio.sleep(_RETRY_S)
        self._tasks[task.id] = task
        outcome = await self._network.request(worker, API, DispatchJob(id=task.id, spec=spec), timeout_s=30)
        assert isinstance(outcome, DispatchJobOutcome)
        assert not outcome.failed, f"{worker} refused the dispatch"
        self._nursery.start_soon(self._keep, task)
        return task

    async def _renew(self, task: Task) -> bool:
        answer = await self._network.request(task.worker, API, RenewLease(id=task.lease), timeout_s=3)
        assert isinstance(answer, RenewLeaseOutcome)
        if answer.timeout is not None:
            task.expires = answer.timeout.timestamp
        return not answer.failed

    async def _keep(self, task: Task) -> None:
        """Renew a lease after a third of it, and where that fails again and again while it lasts."""
        renewed = True
        while task.renewing and (left_s := task.expires - time.time()) > 0:
            await trio.sleep(max(left_s / 3, _RETRY_S) if renewed else _RETRY_S)
            if task.renewing:
                try:
                    renewed = await self._renew(task)
                    task.refused = task.refused or not renewed
                except NetworkError as error:
                    logger.warning("cannot renew the lease of %s yet: %s", task.name, error)
                    renewed = False

    async def _healthy(self, worker: str) -> bool:
        try:
            answer = await self._network.request(worker, HEALTH, HealthRequest(), timeout_s=5)
        except NetworkError:
            return False
        return isinstance(answer, HealthResponse) and answer.healthy

    def _spec(self, program: str, args: tuple[str, ...], executor: str) -> JobSpec:
        peers: dict[str, Any] = {
            "type": "peers",
            "peers": [self._identity.peer_id],
            "strategy": {"type": "All"},
        }
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
        return JobSpec.model_validate(
            {
                "job_id": str(uuid4()),
                "executor": {"class": "train", "descriptor": {"name": executor}, "config": config},
            }
        )
