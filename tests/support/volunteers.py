"""Simulated workers on a real network: they offer, renew, and report the progress of a job."""

import time
import uuid
from dataclasses import dataclass, field

import trio

from hypha_messages.advertisement import TOPIC, decode
from hypha_messages.api import (
    API,
    DataAssignment,
    DispatchJob,
    DispatchJobOutcome,
    JobStatus,
    RenewLease,
    RenewLeaseOutcome,
    ReportJobStatus,
    RequestData,
    WorkerOffer,
)
from hypha_messages.job import TrainExecutor
from hypha_messages.progress import PROGRESS, Metrics, Progress, ProgressResponse, ReportProgress, Status
from hypha_messages.types import Message, SystemTime
from hypha_network.changes import Changes
from hypha_network.network import Network

LEASE_S = 10.0


@dataclass
class Rendezvous:
    """Replaces the pushes between the trainers of a job and its parameter server."""

    updates: list[str] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)
    steps: int = 0

    async def until(self, count: int) -> None:
        await self.changes.until(lambda: len(self.updates) >= count)

    async def step(self, number: int) -> None:
        await self.changes.until(lambda: self.steps >= number)


@dataclass
class Volunteer:
    """A simulated worker; its attributes set its behaviour and record the messages that it received."""

    network: Network
    class_: str
    meeting: Rendezvous
    price: float = 10.0
    batch_time_s: float = 0.01
    lease_s: float = LEASE_S
    fail_after_batches: int | None = None
    refuse_renewals: range = range(0)
    ignore_dispatches: int = 0
    says_so_late_s: float = 0.0
    renewals: int = 0
    slices: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    specs: list[object] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self.nursery:
            self.network.handle(API, self._answer)
            advertisements = self.network.subscribe(TOPIC, decode, 100)
            task_status.started()
            async for gossip in advertisements:
                request = gossip.message
                if any(descriptor.class_ == self.class_ for descriptor in request.spec.executor):
                    offer = WorkerOffer(
                        id=uuid.uuid4(),
                        request_id=request.id,
                        price=self.price,
                        resources=request.spec.resources,
                        timeout=SystemTime.from_timestamp(time.time() + 0.5),
                    )
                    self.nursery.start_soon(self.network.request, gossip.source, API, offer)

    async def _answer(self, peer_id: str, request: Message) -> Message | None:
        timeout = SystemTime.from_timestamp(time.time() + self.lease_s)
        if isinstance(request, RenewLease):
            self.renewals += 1
            return None if self.renewals in self.refuse_renewals else RenewLeaseOutcome(id=request.id, timeout=timeout)
        if isinstance(request, DispatchJob):
            if self.ignore_dispatches:
                self.ignore_dispatches -= 1
                return None
            self.specs.append(request.spec)
            self.nursery.start_soon(self._work, peer_id, request)
            return DispatchJobOutcome(id=request.id, timeout=timeout)
        return None

    async def _work(self, scheduler: str, job: DispatchJob) -> None:
        finish = self._train if isinstance(job.spec.executor, TrainExecutor) else self._aggregate
        status = await finish(scheduler, job)
        report = ReportJobStatus(task_id=job.id, status=JobStatus(type=status))
        await self.network.request(scheduler, API, report)

    async def _say(self, scheduler: str, job: DispatchJob, **progress: object) -> ProgressResponse:
        report = ReportProgress(job_id=job.spec.job_id, progress=Progress(**progress))
        answer: ProgressResponse = await self.network.request(scheduler, PROGRESS, report)
        self.answers.append(answer.type)
        return answer

    async def _train(self, scheduler: str, job: DispatchJob) -> str:
        config = job.spec.executor.config
        round_ = 0
        while True:
            assignment: DataAssignment = await self.network.request(
                scheduler, API, RequestData(dataset=config.data.dataset)
            )
            self.slices.append(assignment.index)
            left, count = None, 0
            while left != 0:
                if self.fail_after_batches is not None and len(self.batches) >= self.fail_after_batches:
                    return "Failed"
                await trio.sleep(self.batch_time_s)
                count += 1
                self.batches.append(config.batch_size)
                answer = await self._say(scheduler, job, status=Status(batch_size=config.batch_size))
                left = answer.counter if answer.type == "ScheduleUpdate" else left and left - 1
            await self._say(scheduler, job, stage="update")
            self.meeting.updates.append(self.network.peer_id)
            self.meeting.changes.notify()
            round_ += 1
            await self._say(scheduler, job, metrics=Metrics(round=round_, metrics={"loss": 1 / round_}))
            await self.meeting.step(round_)
            if (await self._say(scheduler, job, stage="update-received")).type == "Done":
                return "Finished"

    async def _aggregate(self, scheduler: str, job: DispatchJob) -> str:
        trainers = len(job.spec.executor.config.updates.peers)
        while True:
            with trio.move_on_after(1.0):  # then without the stragglers
                await self.meeting.until((self.meeting.steps + 1) * trainers)
            if not self.meeting.updates[self.meeting.steps * trainers :]:
                continue
            self.meeting.steps += 1
            while len(self.meeting.updates) < self.meeting.steps * trainers:
                self.meeting.updates.append("nobody")
            if self.says_so_late_s:
                self.meeting.changes.notify()
                await trio.sleep(self.says_so_late_s)
            done = (await self._say(scheduler, job, stage="updated")).type == "Done"
            self.meeting.changes.notify()
            if done:
                return "Finished"
