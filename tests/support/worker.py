"""Parts of a worker for tests: requests, a market in memory, jobs that end on request."""

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID, uuid4

import trio

from hypha_messages.advertisement import RequestWorker, WorkerSpec
from hypha_messages.api import ReportJobStatus, ReportJobStatusReceived, WorkerOffer, WorkerOfferAccepted
from hypha_messages.job import ExecutorDescriptor, JobSpec
from hypha_messages.types import Resources, SystemTime
from hypha_network.changes import Changes
from hypha_network.errors import PeerUnreachable, RemoteRefused
from hypha_network.services.gossip_messages import Gossip
from hypha_worker.job import Failed, Finished, JobEvent, LaunchError, Started
from hypha_worker.market.capacity import Capacity
from hypha_worker.market.evaluator import Policy
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.rules import LedgerRules
from hypha_worker.market.settings import Settings

ALICE = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
BOB = "12D3KooWJWoaqZhDaoEFshF7Rh1bpY9ohihFhzcW6d69Lr2NASuq"
TRAIN = ExecutorDescriptor(class_="train", name="test")
AGGREGATE = ExecutorDescriptor(class_="aggregate", name="test")
WHOLE = Resources(gpu=8, cpu=4, memory=16, storage=100)
TINY = Resources(gpu=1e-6, cpu=1e-6, memory=1e-6, storage=1e-6)
"""A minimum that raises no request of these tests noticeably."""
HALF = Resources(gpu=4, cpu=2, memory=8, storage=50)


def ledger_of(resources: Resources, clock: Callable[[], float], **rules: Any) -> Ledger:
    """A ledger of a worker that has these resources on one node."""
    return Ledger(LedgerRules(Capacity(resources), **rules), clock)


def settings_by(policy: Policy, **rules: Any) -> Settings:
    """The settings of a worker with a policy, whose executors are proven."""
    share = policy.share if policy.max_share < 1 else None
    return Settings(policy, LedgerRules(policy.capacity, share, **rules), offers=True, proven_at=0.0)


def request(
    resources: Resources = HALF,
    bid: float = 100,
    *,
    timeout: float = 1e9,
    executors: tuple[ExecutorDescriptor, ...] = (TRAIN,),
    request_id: UUID | None = None,
) -> RequestWorker:
    """A request for a worker; `timeout` is seconds since the epoch."""
    return RequestWorker(
        id=request_id or uuid4(),
        spec=WorkerSpec(resources=resources, executor=list(executors)),
        timeout=SystemTime.from_timestamp(timeout),
        bid=bid,
    )


class Market:
    """A network of schedulers in memory. It delivers requests to the arbiter, and records offers and reports."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Gossip[RequestWorker]](math.inf)
        self.offers: dict[str, list[WorkerOffer]] = defaultdict(list)
        self.offered_at: dict[UUID, float] = {}
        self.statuses: dict[str, list[ReportJobStatus]] = defaultdict(list)
        self.unreachable: set[str] = set()
        self.refusing: set[str] = set()
        self.delay_s = 0.0
        self.changes = Changes()

    def advertise(self, scheduler: str, *requests: RequestWorker) -> None:
        """Publish requests of a scheduler."""
        for wanted in requests:
            self._send.send_nowait(Gossip(scheduler, wanted))

    def subscribe(
        self, _topic: str, _decode: Any, _limit: int, _proved_per_s: float, _hears: Any
    ) -> trio.MemoryReceiveChannel[Gossip[RequestWorker]]:
        """The arbiter's subscription."""
        return self._receive

    async def request(self, peer_id: str, _protocol: Any, message: Any, timeout_s: float) -> Any:
        """Receive a worker's message to a scheduler."""
        await trio.sleep(self.delay_s)
        if peer_id in self.unreachable:
            raise PeerUnreachable(f"{peer_id} is gone")
        if peer_id in self.refusing:
            raise RemoteRefused(f"{peer_id} closed the stream without an answer")
        answer = self._take(peer_id, message)
        self.changes.notify()
        return answer

    def _take(self, peer_id: str, message: Any) -> Any:
        if isinstance(message, WorkerOffer):
            self.offers[peer_id].append(message)
            self.offered_at[message.request_id] = trio.current_time()
            return WorkerOfferAccepted()
        assert isinstance(message, ReportJobStatus)
        self.statuses[peer_id].append(message)
        return ReportJobStatusReceived()


class Jobs:
    """Jobs that run until a test ends them."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[JobEvent](math.inf)
        self.running: dict[UUID, Lease] = {}
        self.deadlines: dict[UUID, float] = {}
        self.reported: list[UUID] = []
        self.reasons: dict[UUID, str] = {}
        self.starts: list[UUID] = []
        self.start_s: dict[UUID, float] = {}
        self.broken = False

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """The outcomes of the jobs."""
        return self._receive

    async def start(self, lease: Lease, task_id: UUID, _spec: JobSpec, _scheduler: str) -> None:
        """Run a job after its configured start time."""
        self.starts.append(task_id)
        await trio.sleep(self.start_s.get(task_id, 0))
        if self.broken:
            raise LaunchError("no such program: trainer")
        assert task_id not in self.running
        self.running[task_id] = lease

    async def extend(self, task_id: UUID, deadline: float) -> None:
        """Record a renewal."""
        await trio.lowlevel.checkpoint()
        self.deadlines[task_id] = deadline

    async def terminate(self, task_id: UUID, reason: str) -> None:
        """End a job."""
        await trio.lowlevel.checkpoint()
        self.reasons[task_id] = reason
        if self.running.pop(task_id, None):
            self._send.send_nowait(Failed(task_id, reason))

    def record_reported(self, task_id: UUID) -> None:
        """Record that a scheduler was notified."""
        self.reported.append(task_id)

    def begin(self, task_id: UUID) -> None:
        """Start the executor of a job."""
        self._send.send_nowait(Started(task_id))

    def fail(self, task_id: UUID, *, start_failed: float | None = None) -> None:
        """Let a job fail, maybe because the cluster could not start it."""
        del self.running[task_id]
        self._send.send_nowait(Failed(task_id, "no image", start_failed=start_failed))

    def finish(self, task_id: UUID) -> None:
        """End a job successfully."""
        del self.running[task_id]
        self._send.send_nowait(Finished(task_id))
