"""Manages the jobs of this node: a runtime runs them, and the connector API connects them to the network."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import trio

from hypha_messages.job import JobSpec
from hypha_messages.streams import PUSH
from hypha_network.network import Network
from hypha_worker.connector.api import Connector
from hypha_worker.connector.http_server import Exchange
from hypha_worker.connector.pushes import PushRouter
from hypha_worker.job import AdoptedJob, Failed, Finished, Job, JobEvent, LaunchError, Started
from hypha_worker.job_history import JobHistory
from hypha_worker.market.ledger import Lease
from hypha_worker.progress import Report
from hypha_worker.runtimes.protocol import Runtime, Serve
from hypha_worker.telemetry import Telemetry
from hypha_worker.traces.job_traces import DISPATCH
from hypha_worker.training import TrainingMetrics


class JobManager:
    """Starts, watches and ends jobs. `open_job_manager` makes one."""

    def __init__(
        self,
        runtime: Runtime,
        network: Network,
        serve: Serve,
        telemetry: Telemetry,
        nursery: trio.Nursery,
    ) -> None:
        self._runtime = runtime
        self.extend, self.terminate, self.record_reported = runtime.extend, runtime.terminate, runtime.record_reported
        self._network = network
        self._adopted = trio.Event()
        self._pushes = PushRouter()
        self._training = TrainingMetrics(telemetry)
        self.history = JobHistory()
        self._connector = Connector(
            network,
            self._pushes,
            nursery,
            telemetry,
            authenticate=runtime.authenticate,
            record_progress=self._record_progress,
        )
        nursery.start_soon(serve, self._handle)

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """The events of all jobs. Asking for the next event confirms that the previous one is recorded."""
        return self._events()

    @property
    def pushes_waiting(self) -> int:
        """How many pushes of peers wait for their job."""
        return self._pushes.waiting

    async def start(self, lease: Lease, task_id: UUID, spec: JobSpec, scheduler: str) -> None:
        """Start a job under a lease. LaunchError if it cannot run here."""
        if self._connector.scheduler_of(spec.job_id) not in (None, scheduler):
            raise LaunchError(
                f"tasks of job {spec.job_id} run here for another scheduler. Dispatch a job with an id of its own."
            )
        trace = str(lease.trace.context(DISPATCH)) if lease.trace else None
        job = Job(
            task_id,
            lease.id,
            scheduler,
            spec,
            lease.resources,
            lease.deadline,
            price=lease.price,
            accepted=lease.accepted,
            began=time.time(),
            traceparent=trace,
        )
        self._add(job)
        try:
            await self._runtime.launch(job)
        except BaseException as error:
            self._remove(task_id)
            self.history.on_end(task_id, str(error))
            raise

    async def stop_calls(self) -> None:
        """Refuse new calls of bridges, and return once bridges have received the pending answers of schedulers."""
        await self._connector.stop()

    async def adopt(self) -> list[AdoptedJob]:
        """Find the jobs that outlived the node. From then on serve bridges and peers. Called once, before any start."""
        adopted = await self._runtime.adopt()
        for found in adopted:
            if found.running:
                self._add(found.job, adopted=True, started=found.started)
        self._adopted.set()
        self._network.handle_stream(PUSH, self._pushes.handle)
        return adopted

    async def _handle(self, exchange: Exchange) -> None:
        await self._adopted.wait()  # until then the job of a bridge may be unknown
        await self._connector.handle(exchange)

    async def _events(self) -> AsyncIterator[JobEvent]:
        async for event in self._runtime.events:
            if isinstance(event, Finished | Failed):
                self._remove(event.task_id)
                self.history.on_end(event.task_id, event.reason if isinstance(event, Failed) else None)
            elif isinstance(event, Started):
                self.history.on_started(event.task_id)
            yield event

    def _add(self, job: Job, *, adopted: bool = False, started: bool = False) -> None:
        self._connector.add(job, adopted=adopted)
        self._training.add(job)
        self.history.add(job, started=started)

    def _remove(self, task_id: UUID) -> None:
        self._connector.remove(task_id)
        self._training.remove(task_id)

    def _record_progress(self, task_id: UUID, report: Report) -> None:
        self._runtime.record_progress(task_id, report)
        self._training.record(task_id, report)
        self.history.on_report(task_id, report)


@asynccontextmanager
async def open_job_manager(
    runtime: Runtime,
    network: Network,
    serve: Serve,
    telemetry: Telemetry,
) -> AsyncIterator[JobManager]:
    """Manage the jobs of a runtime. At the end running jobs go on, and their bridges wait for the next node."""
    async with trio.open_nursery() as nursery:
        try:
            yield JobManager(runtime, network, serve, telemetry, nursery)
        finally:
            nursery.cancel_scope.cancel()
