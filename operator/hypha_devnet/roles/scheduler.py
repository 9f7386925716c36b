"""The scheduler of one DiLoCo job: finds workers, dispatches to them, assigns slices and leads the rounds."""

import logging
import math
import uuid
from collections.abc import Callable
from statistics import fmean

import trio

from hypha_contracts.command_line import leaves
from hypha_devnet.client import Lease, SchedulerClient, Wanted
from hypha_devnet.config import DilocoJob, InferenceJob, SchedulerConfig
from hypha_devnet.events import Events
from hypha_devnet.roles.allocation import AllocationError, allocate
from hypha_devnet.roles.inference import InferenceScheduler
from hypha_devnet.roles.node import join
from hypha_devnet.roles.rounds import Rounds, Slices, Trainer
from hypha_devnet.roles.steps import Dataset, JobFailedError, all_of, await_reports, find_dataset, join_network
from hypha_messages.advertisement import WorkerSpec
from hypha_messages.api import DataAssignment, ReportJobStatus
from hypha_messages.job import (
    AggregateConfig,
    AggregateExecutor,
    ExecutorDescriptor,
    ExecutorName,
    JobSpec,
    SchedulerReference,
    TrainConfig,
    TrainExecutor,
)
from hypha_messages.progress import ProgressResponse, ReportProgress
from hypha_network.changes import Changes
from hypha_network.errors import NetworkError
from hypha_network.network import Network

logger = logging.getLogger(__name__)

TRAIN_EXECUTOR = "diloco-transformer"
AGGREGATE_EXECUTOR = "parameter-server"
STEP_WAIT_S = 5.0
"""How long the answer to a trainer that has merged waits for the parameter server's report of that step."""


class Scheduler:
    """Runs one DiLoCo job."""

    def __init__(self, network: Network, job: DilocoJob, events: Events) -> None:
        self._network = network
        self._job = job
        self._events = events
        self._job_id = uuid.uuid4()
        self._client = SchedulerClient(
            network, events, assign_slice=self._assign_slice, on_status=self._on_status, on_progress=self._on_progress
        )
        self._rounds = Rounds({}, job.rounds.avg_samples_between_updates, job.rounds.update_rounds)
        self._dataset: Dataset | None = None
        self._slices = Slices(0)
        self._parameter_server = ""
        self._tasks: dict[uuid.UUID, str] = {}
        self._changes = Changes()
        self._failure: str | None = None
        self._last_progress = 0.0
        self._losses: dict[str, float] = {}

    async def run(self) -> None:
        """Run the job to its end; JobFailedError or AllocationError if it fails."""
        resources = self._job.resources
        async with trio.open_nursery() as nursery:
            await join_network(self._network, resources.deadline_s)
            name = self._job.dataset.dataset
            self._dataset = await find_dataset(self._network, name, self._events, resources.deadline_s)
            self._slices = Slices(self._dataset.slices)
            trainers, server = await self._allocate(nursery)
            await self._dispatch(trainers, server)
            await self._until(lambda: self._rounds.done)
            await await_reports(lambda: self._until(lambda: not self._tasks))
            nursery.cancel_scope.cancel()
        self._events.emit("finished", job=str(self._job_id), rounds=self._rounds.round)

    async def _allocate(self, nursery: trio.Nursery) -> tuple[list[Lease], Lease]:
        resources = self._job.resources
        trainers: list[Lease] = []
        servers: list[Lease] = []
        trainer_price, server_price = resources.worker_price, resources.parameter_server_price
        train = ExecutorDescriptor(class_="train", name=TRAIN_EXECUTOR)
        aggregate = ExecutorDescriptor(class_="aggregate", name=AGGREGATE_EXECUTOR)
        trainer = WorkerSpec(resources=resources.worker, executor=[train])
        server = WorkerSpec(resources=resources.parameter_server, executor=[aggregate])
        wanted_trainers = Wanted(trainer, trainer_price.bid, "trainer", resources.num_workers)
        wanted_server = Wanted(server, server_price.bid, "parameter-server")

        def keep(lease: Lease) -> None:
            nursery.start_soon(self._hold, lease)

        complete = False
        while not complete:
            for wanted, price, leases, others in (
                (wanted_trainers, trainer_price, trainers, servers),
                (wanted_server, server_price, servers, trainers),
            ):
                await allocate(
                    self._client,
                    wanted,
                    leases,
                    keep,
                    max_price=price.max,
                    deadline_s=resources.deadline_s,
                    excluded={lease.peer_id for lease in others},
                )
            complete = not any(lease.lost.is_set() for lease in trainers)
        return trainers, servers[0]

    async def _dispatch(self, trainers: list[Lease], server: Lease) -> None:
        self._parameter_server = server.peer_id
        for lease in trainers:
            self._rounds.trainers[lease.peer_id] = Trainer(self._batch_size(lease))
        peers = [lease.peer_id for lease in trainers]
        self._rounds.started_at = self._last_progress = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dispatch_one, server, self._aggregate_spec(peers))
            for lease in trainers:
                nursery.start_soon(self._dispatch_one, lease, self._train_spec(lease.peer_id))

    async def _dispatch_one(self, lease: Lease, spec: JobSpec) -> None:
        task_id = uuid.uuid4()
        self._tasks[task_id] = lease.peer_id
        try:
            accepted = await self._client.dispatch_until_answered(lease, spec, task_id)
        except NetworkError as error:
            raise JobFailedError(f"cannot dispatch to {lease.peer_id}: {error}") from error
        if not accepted:
            raise JobFailedError(f"{lease.peer_id} refused the job")
        self._events.emit("dispatched", peer=lease.peer_id, role=lease.role, task=str(task_id), job=str(self._job_id))

    def _batch_size(self, lease: Lease) -> int:
        """Return how often the requested GPU memory (for a batch of one) fits; the maximum if the job requests none."""
        wanted_gpu, limit = self._job.resources.worker.gpu, self._job.rounds.max_batch_size or 2**31
        if not wanted_gpu:
            return self._job.rounds.max_batch_size or 1
        return max(1, min(limit, math.floor(lease.offer.message.resources.gpu / wanted_gpu)))

    def _train_spec(self, peer_id: str) -> JobSpec:
        server = all_of([self._parameter_server])
        job = self._job
        config = TrainConfig(
            model=job.model.model(),
            data=SchedulerReference(peer=self._network.peer_id, dataset=job.dataset.dataset),
            updates=server,
            results=server,
            optimizer=job.inner_optimizer,
            batch_size=self._rounds.trainers[peer_id].batch_size,
            preprocessor=job.preprocessor.preprocessor() if job.preprocessor else None,
            scheduler=job.schedule,
        )
        return JobSpec(
            job_id=self._job_id, executor=TrainExecutor(descriptor=ExecutorName(name=TRAIN_EXECUTOR), config=config)
        )

    def _aggregate_spec(self, trainers: list[str]) -> JobSpec:
        config = AggregateConfig(
            updates=all_of(trainers), results=all_of(trainers), optimizer=self._job.outer_optimizer
        )
        return JobSpec(
            job_id=self._job_id,
            executor=AggregateExecutor(descriptor=ExecutorName(name=AGGREGATE_EXECUTOR), config=config),
        )

    async def _hold(self, lease: Lease) -> None:
        await self._client.keep(lease)
        self._lose(lease.peer_id, "its lease ended")

    def _lose(self, peer_id: str, reason: str) -> None:
        """Continue without a worker, or record that the job has failed."""
        if self._rounds.done or not self._takes_part(peer_id):
            return
        for task_id in [task_id for task_id, peer in self._tasks.items() if peer == peer_id]:
            del self._tasks[task_id]
        self._events.emit("worker_lost", peer=peer_id, reason=reason)
        self._losses.pop(peer_id, None)
        needed = self._job.resources.min_workers or self._job.resources.num_workers
        if peer_id == self._parameter_server or not self._rounds.trainers:
            self._failure = f"lost the worker {peer_id}: {reason}"
        elif peer_id in self._rounds.trainers:
            del self._rounds.trainers[peer_id]
            self._slices.give_back(peer_id)
            if len(self._rounds.trainers) < needed:
                self._failure = f"lost the trainer {peer_id}: {reason}; {needed} are needed"
        self._changes.notify()

    async def _until(self, condition: Callable[[], bool]) -> None:
        stall_s = self._job.resources.stall_s
        while self._failure is None and not condition():
            with trio.move_on_at(self._last_progress + stall_s) as scope:
                await self._changes.wait()
            if scope.cancelled_caught and trio.current_time() >= self._last_progress + stall_s:
                self._failure = f"no worker has reported any progress for {stall_s:g} s"
        if self._failure is not None:
            raise JobFailedError(self._failure)

    def _assign_slice(self, peer_id: str, name: str) -> DataAssignment:
        dataset = self._dataset
        if dataset is None or name != dataset.name or not dataset.slices:
            return DataAssignment()
        if peer_id not in self._rounds.trainers:
            return DataAssignment(error="this peer is not a trainer of the job")
        index = self._slices.next(peer_id)
        self._events.emit("slice", peer=peer_id, index=index, epoch=self._slices.epoch)
        return DataAssignment(data_provider=dataset.provider, index=index)

    def _on_status(self, peer_id: str, report: ReportJobStatus) -> None:
        if self._tasks.get(report.task_id) != peer_id:
            logger.warning("%s reports the status of another worker's task", peer_id)
            return
        self._events.emit("job_status", peer=peer_id, status=report.status.type)
        if report.status.type == "Failed":
            self._lose(peer_id, "its job failed; see its log")
        elif report.status.type == "Finished":
            del self._tasks[report.task_id]
            if not self._rounds.finished:
                self._lose(peer_id, "its job ended before the last round")
        self._changes.notify()

    async def _on_progress(self, peer_id: str, report: ReportProgress) -> ProgressResponse:
        progress = report.progress
        if report.job_id != self._job_id or not self._takes_part(peer_id):
            logger.warning("%s reports progress of another job", peer_id)
            return ProgressResponse(type="Error")
        self._last_progress = trio.current_time()
        if progress.metrics is not None:
            metrics = progress.metrics.metrics
            self._events.emit("metrics", peer=peer_id, round=progress.metrics.round, metrics=metrics)
            if "loss" in metrics:
                self._losses[peer_id] = metrics["loss"]
            return ProgressResponse(type="Ok")
        if (progress.stage == "updated") != (peer_id == self._parameter_server):
            return ProgressResponse(type="Error")
        if progress.status is not None:
            return self._on_batch(peer_id, progress.status.batch_size)
        return await self._on_stage(peer_id, progress.stage)

    async def _on_stage(self, peer_id: str, stage: str | None) -> ProgressResponse:
        match stage:
            case "updated":
                return self._on_step()
            case "update-received":
                return await self._on_update_received(peer_id)
        self._rounds.update_started(peer_id)
        self._events.emit("updating", peer=peer_id, round=self._rounds.round)
        return ProgressResponse(type="Ok")

    def _takes_part(self, peer_id: str) -> bool:
        return peer_id in self._rounds.trainers or peer_id == self._parameter_server

    def _on_batch(self, peer_id: str, batch_size: int) -> ProgressResponse:
        counter = self._rounds.batch_done(peer_id, batch_size, trio.current_time())
        self._events.emit(
            "batch", peer=peer_id, round=self._rounds.round, batch_size=batch_size, samples=self._rounds.samples
        )
        if counter is None:
            return ProgressResponse(type="Continue")
        self._events.emit("update_scheduled", peer=peer_id, round=self._rounds.round, batches=counter)
        return ProgressResponse(type="ScheduleUpdate", counter=counter)

    def _on_step(self) -> ProgressResponse:
        started_at = self._rounds.started_at
        now = trio.current_time()
        if self._rounds.updated(now):
            of, seconds = self._rounds.rounds, round(now - started_at, 3)
            loss = round(fmean(self._losses.values()), 4) if self._losses else None
            self._events.emit("round", round=self._rounds.round, of=of, seconds=seconds, loss=loss)
            self._changes.notify()
        return ProgressResponse(type="Done" if self._rounds.finished else "Ok")

    async def _on_update_received(self, peer_id: str) -> ProgressResponse:
        with trio.move_on_after(STEP_WAIT_S):
            await self._changes.until(lambda: not self._rounds.awaits_step(peer_id))
        if peer_id not in self._rounds.trainers:
            return ProgressResponse(type="Error")
        done = self._rounds.update_received(peer_id)
        self._events.emit("update_received", peer=peer_id, round=self._rounds.round, done=done)
        self._changes.notify()
        return ProgressResponse(type="Done" if done else "Continue")


async def run_scheduler(config: SchedulerConfig, events: Events) -> int:
    """Run the job; return the exit code: 0 when it is done, 1 when it failed."""
    async with join(config) as network:
        events.emit("listening", peer_id=network.peer_id, addresses=network.addresses())
        reason = "stopped by a signal"
        try:
            job = config.scheduler.job
            if isinstance(job, InferenceJob):
                await InferenceScheduler(network, job, events).run()
            else:
                await Scheduler(network, job, events).run()
            reason = ""
        except* (JobFailedError, AllocationError) as group:
            reason = "; ".join(str(error) for error in leaves(group))
        finally:
            if reason:
                logger.error("the job failed: %s", reason)
                events.emit("failed", reason=reason)
    return 1 if reason else 0
