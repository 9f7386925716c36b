"""The scheduler of one inference job: every slice of a dataset is predicted once, whatever becomes of the workers.

A worker runs until no slice is free, and its lease ends with its job. The slices of a worker that is lost are free
again, and another worker is hired for them. If its predictions arrive after all, the first ones of a slice count.
"""

import logging
import uuid
from dataclasses import dataclass

import trio

from hypha_devnet.client import Lease, SchedulerClient, Wanted
from hypha_devnet.config import InferenceJob
from hypha_devnet.events import Events
from hypha_devnet.roles.allocation import AllocationError, allocate
from hypha_devnet.roles.assignments import Assignments
from hypha_devnet.roles.predictions import Predictions, RefusedResultError
from hypha_devnet.roles.steps import Dataset, JobFailedError, all_of, await_reports, find_dataset, join_network
from hypha_executor.labels import Labels
from hypha_messages.advertisement import WorkerSpec
from hypha_messages.api import DataAssignment, ReportJobStatus
from hypha_messages.job import (
    ExecutorDescriptor,
    ExecutorName,
    InferenceConfig,
    InferenceExecutor,
    JobSpec,
    PeersReference,
    SchedulerReference,
)
from hypha_messages.progress import ProgressResponse, ReportProgress
from hypha_messages.streams import PUSH
from hypha_network.changes import Changes
from hypha_network.errors import NetworkError
from hypha_network.network import Network

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Worker:
    """A worker with a lease. `reported` is when it last reported progress, in seconds of trio's clock."""

    lease: Lease
    task_id: uuid.UUID
    reported: float
    slices_done: int = 0

    @property
    def peer_id(self) -> str:
        return self.lease.peer_id


class InferenceScheduler:
    """Runs one job."""

    def __init__(self, network: Network, job: InferenceJob, events: Events) -> None:
        self._network = network
        self._job = job
        self._events = events
        self._job_id = uuid.uuid4()
        self._client = SchedulerClient(
            network, events, assign_slice=self._assign_slice, on_status=self._on_status, on_progress=self._on_progress
        )
        self._dataset: Dataset | None = None
        self._slices = Assignments(0)
        self._workers: dict[str, _Worker] = {}
        self._unfit: set[str] = set()
        """The workers that are not hired again, because their job failed or achieved nothing."""
        self._samples = 0
        self._changes = Changes()

    async def run(self) -> None:
        """Run the job to its end; JobFailedError or AllocationError if it fails."""
        deadline_s = self._job.resources.deadline_s
        self._prepare_directory()
        async with trio.open_nursery() as nursery:
            await join_network(self._network, deadline_s)
            self._dataset = await find_dataset(self._network, self._job.dataset.dataset, self._events, deadline_s)
            self._slices = Assignments(self._dataset.slices)
            nursery.start_soon(self._hire, nursery)
            await self._changes.until(lambda: self._slices.finished)
            await await_reports(lambda: self._changes.until(lambda: not self._workers))
            nursery.cancel_scope.cancel()
        self._events.emit("finished", job=str(self._job_id), slices=self._slices.done, samples=self._samples)

    def _prepare_directory(self) -> None:
        """Make the directory for the predictions, and receive them there; JobFailedError if it is not empty."""
        if (directory := self._job.results.directory) is None:
            return
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise JobFailedError(f"results.directory {directory} is not empty; name another one for this job")
        except OSError as error:
            raise JobFailedError(f"results.directory {directory}: {error.strerror}; name another one") from error
        max_bytes = int(self._job.results.max_gb * 1e9)
        predictions = Predictions(directory, max_bytes, self._expects, self._on_result)
        self._network.handle_stream(PUSH, predictions.take)

    async def _hire(self, nursery: trio.Nursery) -> None:
        """Hire workers for free slices, up to the wanted number of workers at once; AllocationError if none is left."""
        resources = self._job.resources
        executor = ExecutorDescriptor(class_="inference", name=self._job.executor)
        spec = WorkerSpec(resources=resources.worker, executor=[executor])

        def on_lease(lease: Lease) -> None:
            worker = _Worker(lease, uuid.uuid4(), trio.current_time())
            self._workers[worker.peer_id] = worker
            nursery.start_soon(self._employ, worker)
            nursery.start_soon(self._hold, worker)
            nursery.start_soon(self._watch, worker)

        while True:
            await self._changes.until(lambda: self._missing > 0)
            leases = [worker.lease for worker in self._workers.values()]
            wanted = Wanted(spec, resources.worker_price.bid, "inference", len(leases) + self._missing)
            try:
                await allocate(
                    self._client,
                    wanted,
                    leases,
                    on_lease,
                    max_price=resources.worker_price.max,
                    deadline_s=resources.deadline_s,
                    excluded=self._unfit,
                )
            except AllocationError as error:
                if not self._workers:
                    unfit = f"; the jobs of {len(self._unfit)} others failed" if self._unfit else ""
                    raise AllocationError(f"{error}{unfit}") from error
                logger.warning("%s; going on with %d", error, len(self._workers))

    @property
    def _missing(self) -> int:
        """How many more workers have something to do."""
        return min(self._job.resources.num_workers - len(self._workers), self._slices.free)

    async def _employ(self, worker: _Worker) -> None:
        try:
            accepted = await self._client.dispatch_until_answered(worker.lease, self._spec(), worker.task_id)
        except NetworkError as error:
            self._lose(worker, f"the job cannot be dispatched: {error}")
            return
        if not accepted:
            self._lose(worker, "it refused the job", unfit=True)
            return
        self._events.emit(
            "dispatched", peer=worker.peer_id, role="inference", task=str(worker.task_id), job=str(self._job_id)
        )

    async def _hold(self, worker: _Worker) -> None:
        await self._client.keep(worker.lease)
        self._lose(worker, "its lease ended")

    async def _watch(self, worker: _Worker) -> None:
        stall_s = self._job.resources.stall_s
        while (left_s := worker.reported + stall_s - trio.current_time()) > 0:  # noqa: ASYNC110 - each report adds time
            await trio.sleep(left_s)
        self._lose(worker, f"it has reported no progress for {stall_s:g} s", unfit=True)

    def _spec(self) -> JobSpec:
        job = self._job
        config = InferenceConfig(
            model=job.model.model(),
            data=SchedulerReference(peer=self._network.peer_id, dataset=job.dataset.dataset),
            batch_size=job.batch_size,
            results=self._results(),
            preprocessor=job.preprocessor.preprocessor() if job.preprocessor else None,
            outputs=list(job.outputs) if job.outputs else None,
        )
        executor = InferenceExecutor(descriptor=ExecutorName(name=job.executor), config=config)
        return JobSpec(job_id=self._job_id, executor=executor)

    def _results(self) -> PeersReference | None:
        if self._job.results.directory is not None:
            return all_of([self._network.peer_id])
        return all_of(list(self._job.results.peers)) if self._job.results.peers else None

    def _lose(self, worker: _Worker, reason: str, *, unfit: bool = False) -> None:
        """Go on without a worker, whose unfinished slices are free again. No-op if its job has ended."""
        if self._workers.get(worker.peer_id) is not worker:
            return
        if unfit:
            self._unfit.add(worker.peer_id)
        released = self._end(worker)
        self._events.emit("worker_lost", peer=worker.peer_id, reason=reason, slices=released)

    def _end(self, worker: _Worker) -> list[int]:
        del self._workers[worker.peer_id]
        worker.lease.abandoned = True
        released = self._slices.release(worker.peer_id)
        self._changes.notify()
        return released

    def _assign_slice(self, peer_id: str, name: str) -> DataAssignment:
        dataset = self._dataset
        if dataset is None or name != dataset.name:
            return DataAssignment()
        if peer_id not in self._workers:
            return DataAssignment(error="this peer is not a worker of the job")
        index = self._slices.next(peer_id)
        if index is None:
            return DataAssignment()
        self._events.emit("slice", peer=peer_id, index=index)
        return DataAssignment(data_provider=dataset.provider, index=index)

    def _on_status(self, peer_id: str, report: ReportJobStatus) -> None:
        worker = self._workers.get(peer_id)
        if worker is None or worker.task_id != report.task_id:
            logger.warning("%s reports the status of a task that it does not run", peer_id)
            return
        self._events.emit("job_status", peer=peer_id, status=report.status.type)
        if report.status.type == "Failed":
            self._lose(worker, "its job failed; see its log", unfit=True)
        elif report.status.type == "Finished":
            released = self._end(worker)
            if self._slices.free and not worker.slices_done:  # hired again, it would achieve nothing again
                self._unfit.add(peer_id)
            if released:
                logger.warning("%s ended without the predictions of slices %s", peer_id, released)

    async def _on_progress(self, peer_id: str, report: ReportProgress) -> ProgressResponse:
        worker, progress = self._workers.get(peer_id), report.progress
        if worker is None or report.job_id != self._job_id:
            logger.warning("%s reports progress of another job", peer_id)
            return ProgressResponse(type="Error")
        worker.reported = trio.current_time()
        if progress.status is not None:
            self._samples += progress.status.batch_size
            self._events.emit("batch", peer=peer_id, batch_size=progress.status.batch_size, samples=self._samples)
        if progress.predicted is not None and not self._counts(worker, progress.predicted.index):
            return ProgressResponse(type="Error")
        return ProgressResponse(type="Done" if self._slices.finished else "Continue")

    def _counts(self, worker: _Worker, index: int) -> bool:
        """Return whether a slice counts as done, now that a worker reports it."""
        if self._slices.is_done(index):
            return True
        if self._job.results.directory is not None or not self._slices.was_given(worker.peer_id, index):
            return False
        self._finish(worker.peer_id, index)
        return True

    def _expects(self, peer_id: str, labels: Labels) -> bool:
        """Return whether a result is the first one of its slice; RefusedResultError if it is none of this job."""
        if labels.job_id != str(self._job_id) or labels.slice_index is None:
            raise RefusedResultError("its labels job_id and slice_index name no slice of this job")
        if not self._slices.was_given(peer_id, labels.slice_index):
            raise RefusedResultError(f"slice {labels.slice_index} was never assigned to it")
        return not self._slices.is_done(labels.slice_index)

    def _on_result(self, peer_id: str, labels: Labels) -> None:
        if labels.slice_index is not None:
            self._finish(peer_id, labels.slice_index)

    def _finish(self, peer_id: str, index: int) -> None:
        self._slices.finish(index)
        if worker := self._workers.get(peer_id):
            worker.slices_done += 1
            worker.reported = trio.current_time()
        self._events.emit("predicted", peer=peer_id, index=index, done=self._slices.done, of=self._slices.count)
        self._changes.notify()
