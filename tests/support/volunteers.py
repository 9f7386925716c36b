"""Simulated workers on a real network: they offer, renew, and report the progress of a job."""

import time
import uuid
from dataclasses import dataclass, field

import trio

from hypha_executor.labels import Labels
from hypha_executor.safetensors import lay_out
from hypha_messages.advertisement import DECODERS, TOPICS
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
from hypha_messages.job import InferenceExecutor, TrainExecutor
from hypha_messages.progress import (
    PROGRESS,
    Metrics,
    PredictedSlice,
    Progress,
    ProgressResponse,
    ReportProgress,
    Status,
)
from hypha_messages.streams import PUSH
from hypha_messages.types import Message, SystemTime
from hypha_network.changes import Changes
from hypha_network.errors import StreamReset
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
    vanish_after_slices: int | None = None
    """An inference worker stops answering, with a slice assigned, after this many slices."""
    samples_per_slice: int = 4
    label_changes: dict[str, object] = field(default_factory=dict)
    renewals: int = 0
    slices: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    specs: list[object] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    reported: trio.Event = field(default_factory=trio.Event)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self.nursery:
            self.network.handle(API, self._answer)
            topic = TOPICS[self.class_]
            advertisements = self.network.subscribe(topic, DECODERS[topic], 100)
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
        if isinstance(job.spec.executor, InferenceExecutor):
            finish = self._infer
        else:
            finish = self._train if isinstance(job.spec.executor, TrainExecutor) else self._aggregate
        status = await finish(scheduler, job)
        report = ReportJobStatus(task_id=job.id, status=JobStatus(type=status))
        await self.network.request(scheduler, API, report)
        self.reported.set()

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

    async def _infer(self, scheduler: str, job: DispatchJob) -> str:
        config, samples = job.spec.executor.config, self.samples_per_slice
        while True:
            assignment: DataAssignment = await self.network.request(
                scheduler, API, RequestData(dataset=config.data.dataset)
            )
            if assignment.index is None:
                return "Finished"
            if self.vanish_after_slices is not None and len(self.slices) >= self.vanish_after_slices:
                self.refuse_renewals = range(10**9)
                self.late_slice = assignment.index
                await trio.sleep_forever()
            if self.fail_after_batches is not None and len(self.batches) >= self.fail_after_batches:
                return "Failed"
            await trio.sleep(self.batch_time_s)
            self.batches.append(samples)
            await self._say(scheduler, job, status=Status(batch_size=samples))
            if config.results and not await self.deliver(scheduler, job, assignment.index):
                return "Failed"
            self.slices.append(assignment.index)
            predicted = PredictedSlice(index=assignment.index, samples=samples)
            if (await self._say(scheduler, job, predicted=predicted)).type == "Done":
                return "Finished"

    async def deliver(self, scheduler: str, job: DispatchJob, index: int) -> bool:
        """Push the predictions of a slice; return whether they were taken."""
        labels = Labels(str(job.spec.job_id), samples=4, dataset="digits", slice_index=index)
        head, _ = lay_out([("logits", "F32", (4,))], {**labels.to_metadata(), **self.label_changes})
        stream = await self.network.open_stream(scheduler, PUSH)
        try:
            await stream.send_all(head + bytes(16))
            await stream.send_eof()
            with trio.fail_after(20):
                return not await stream.receive_some()
        except StreamReset:
            return False
        finally:
            stream.reset()

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
