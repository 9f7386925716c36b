"""Serves leases: renewals, dispatches, expiry, and reports of ended jobs to their schedulers."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Protocol
from uuid import UUID

import trio

from hypha_contracts.backoff import Backoff
from hypha_contracts.limits import MAX_SPEC_BYTES
from hypha_messages.api import (
    API,
    DispatchJob,
    DispatchJobOutcome,
    JobStatus,
    RenewLease,
    RenewLeaseOutcome,
    ReportJobStatus,
)
from hypha_messages.job import JobSpec
from hypha_messages.types import Message, SystemTime
from hypha_network.changes import Changes
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.network import Network
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.job import AdoptedJob, Failed, Finished, JobEvent, LaunchError, RunningJobs, Stage, Started
from hypha_worker.market.ledger import EndedJob, Lease, Ledger, LedgerError, LedgerStore
from hypha_worker.market.starts import StartRecord
from hypha_worker.telemetry import Telemetry
from hypha_worker.traces.job_traces import DISPATCH, END, LEASE, ROOT, logged_in

logger = logging.getLogger(__name__)

_REPORT_TIMEOUT_S = 10.0
_REPORT_BACKOFF = Backoff(first_s=0.5, max_s=15.0)


class Jobs(RunningJobs, Protocol):
    """Runs jobs under leases."""

    async def start(self, lease: Lease, task_id: UUID, spec: JobSpec, scheduler: str) -> None:
        """Start a job under a lease. LaunchError if it cannot run here."""


@dataclass(frozen=True)
class _Run:
    """A running job. This node started or adopted it at `began`, in monotonic seconds, `launched` since the epoch."""

    began: float
    launched: float
    executor: str


class LeaseService:
    """Serves renewals and dispatches, expires leases and reports ended jobs.

    Args:
        starts: records which jobs start.
        on_offer_accepted: called with the scheduler of each renewal.
        on_offer_lapsed: called with the scheduler of each offer that expired without a renewal.
        on_capacity_freed: called whenever leases have ended, or more of them may be granted.
        report_s: how long the node repeats its report of the end of a job.
    """

    def __init__(
        self,
        network: Network,
        ledger: Ledger,
        store: LedgerStore,
        jobs: Jobs,
        telemetry: Telemetry,
        *,
        starts: StartRecord,
        on_offer_accepted: Callable[[str], None],
        on_offer_lapsed: Callable[[str], None],
        on_capacity_freed: Callable[[], None],
        report_s: float = 120,
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._store = store
        self._jobs = jobs
        self._telemetry = telemetry
        self._traces = telemetry.traces
        self._starts = starts
        self._report_s = report_s
        self._starting: dict[UUID, trio.Event] = {}
        self._runs: dict[UUID, _Run] = {}
        self._reporting: set[UUID] = set()
        self._reported = Changes()
        self._nursery: trio.Nursery | None = None
        self._refusal_log = RateLimitedLogger(logger)
        self._lapse_log = RateLimitedLogger(logger)
        self._expiry_log = RateLimitedLogger(logger)
        self._start_log = RateLimitedLogger(logger)
        self._executor_log = RateLimitedLogger(logger)
        self._end_log = RateLimitedLogger(logger)
        self._report_log = RateLimitedLogger(logger)
        self._on_offer_accepted = on_offer_accepted
        self._on_offer_lapsed = on_offer_lapsed
        self._on_capacity_freed = on_capacity_freed

    async def run(self) -> None:
        """Watch leases and jobs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for ended in self._ledger.unreported:
                self._report_soon(ended)
            for lease in self._ledger.leases:
                if lease.state == "ending" and lease.task_id is not None:
                    nursery.start_soon(self._end_job, lease.task_id, lease.end_reason)
            nursery.start_soon(self._prune)
            async for event in self._jobs.events:
                await self._on_event(event)

    def job_states(self) -> Counter[tuple[str, str]]:
        """Return the number of jobs by executor and state, which is `starting`, `running` or `ending`."""
        states: Counter[tuple[str, str]] = Counter()
        for lease in self._ledger.leases:
            if lease.task_id is not None:
                run = self._runs.get(lease.task_id)
                state = "running" if lease.started else "starting"
                executor = run.executor if run else str(lease.executors[0])
                states[executor, "ending" if lease.state == "ending" else state] += 1
        return states

    async def answer(self, scheduler: str, request: Message) -> Message | None:
        """Answer a scheduler's request about its leases. None for requests that workers do not serve."""
        if isinstance(request, RenewLease):
            return await self._renew(scheduler, request)
        if isinstance(request, DispatchJob):
            return await self._dispatch(scheduler, request)
        return None

    async def resume(self, adopted: Iterable[AdoptedJob]) -> None:
        """Match the leases with the jobs that outlived the node. Called before `run`."""
        found_jobs = list(adopted)
        jobs = {found.job.task_id: found.job for found in found_jobs}
        for lease in self._ledger.leases:
            if lease.task_id is not None and lease.task_id not in jobs:
                logger.warning("job %s, which ran under lease %s, is gone", lease.task_id, lease.id)
                self._trace_end(lease, "it is gone")
                self._ledger.end(lease.task_id, "Unknown")
        for job in jobs.values():
            self._runs[job.task_id] = self._begin(job.spec)
            known = self._ledger.find(job.task_id, job.scheduler)
            if isinstance(known, Lease) and known.deadline < job.deadline:  # extended by the runtime at its adoption
                self._ledger.recover(known.model_copy(update={"deadline": job.deadline}))
            elif known is None:
                logger.info("job %s has no lease in the ledger; restoring it from the job's own record", job.task_id)
                self._ledger.recover(
                    Lease(
                        id=job.lease_id,
                        scheduler=job.scheduler,
                        request_id=job.lease_id,
                        executors=(job.spec.descriptor,),
                        resources=job.resources,
                        deadline=job.deadline,
                        price=job.price,
                        state="held",
                        accepted=job.accepted,
                        task_id=job.task_id,
                        dispatched=job.began or None,
                    )
                )
            logger.info("adopted job %s of %s", job.task_id, job.scheduler)
        for found in found_jobs:
            if found.started:
                self._ledger.record_started(found.job.task_id)
        await self._save()

    async def end_all(self, reason: str, report_within_s: float) -> None:
        """End every job and report the ends. Schedulers have `report_within_s` to answer."""
        for lease in self._ledger.leases:
            if self._ledger.withdraw(lease.id):
                self._traces.discard(lease.trace)
        async with trio.open_nursery() as nursery:
            for lease in self._ledger.leases:
                if lease.task_id is not None:
                    nursery.start_soon(self._jobs.terminate, lease.task_id, reason)
        with trio.move_on_after(report_within_s):
            await self._reported.until(
                lambda: not self._reporting and all(lease.task_id is None for lease in self._ledger.leases)
            )

    async def _renew(self, scheduler: str, request: RenewLease) -> RenewLeaseOutcome:
        try:
            deadline = self._ledger.renew(request.id, scheduler)
        except LedgerError as error:
            self._refusal_log.info(scheduler, "refused to renew lease %s: %s", request.id, error)
            self._telemetry.renewals.add(1, {"outcome": "refused"})
            return RenewLeaseOutcome()
        self._on_offer_accepted(scheduler)
        await self._save()
        lease = next((lease for lease in self._ledger.leases if lease.id == request.id), None)
        if lease is not None:
            self._traces.accept(lease.trace)
            if lease.task_id is not None:
                await self._jobs.extend(lease.task_id, deadline)
        self._telemetry.renewals.add(1, {"outcome": "renewed"})
        return RenewLeaseOutcome(id=request.id, timeout=SystemTime.from_timestamp(deadline))

    async def _dispatch(self, scheduler: str, request: DispatchJob) -> DispatchJobOutcome:
        """Start a task once, however often it is dispatched. A repeated dispatch gets the answer of the first one."""
        if self._ledger.find(request.id, scheduler) is not None:
            await self._await_start(request.id)
        else:
            try:
                await self._start(scheduler, request)
            except (LedgerError, LaunchError) as error:
                why = "launch" if isinstance(error, LaunchError) else "lease"
                self._telemetry.dispatches.add(1, {"outcome": "refused", "error.type": why})
                self._refusal_log.warning(scheduler, "refused to run task %s: %s", request.id, error)
        known = self._ledger.find(request.id, scheduler)
        if known is None:
            return DispatchJobOutcome()
        deadline = known.deadline if isinstance(known, Lease) else known.until
        return DispatchJobOutcome(id=request.id, timeout=SystemTime.from_timestamp(deadline))

    async def _start(self, scheduler: str, request: DispatchJob) -> None:
        if (size := len(request.spec.model_dump_json().encode())) > MAX_SPEC_BYTES:
            raise LaunchError(f"its specification has {size} bytes as JSON; the limit is {MAX_SPEC_BYTES}")
        descriptor = request.spec.descriptor
        lease = self._ledger.assign(scheduler, descriptor, request.id)
        self._traces.accept(lease.trace)
        self._starting[request.id] = trio.Event()
        with logged_in(lease.trace.context(DISPATCH) if lease.trace else None):
            await self._launch(lease, scheduler, request)
            self._start_log.info(f"task {request.id}", "runs (%s) for job %s", descriptor, request.spec.job_id)
        self._telemetry.dispatches.add(1, {"outcome": "started"})
        self._telemetry.jobs_started.add(1, {"executor": str(descriptor)})

    async def _launch(self, lease: Lease, scheduler: str, request: DispatchJob) -> None:
        began = self._traces.now()
        ids = {**_ids(lease), "job": str(request.spec.job_id), "executor": str(request.spec.descriptor)}
        try:
            await self._save()
            await self._jobs.start(lease, request.id, request.spec, scheduler)
        except BaseException as error:
            self._traces.record(lease.trace, DISPATCH, began, parent=LEASE, error=str(error), attributes=ids)
            self._ledger.unassign(request.id, recorded=not isinstance(error, LaunchError) or error.recorded)
            raise
        finally:
            self._starting.pop(request.id).set()
        self._traces.record(lease.trace, DISPATCH, began, parent=LEASE, attributes=ids)
        self._runs[request.id] = self._begin(request.spec)

    async def _await_start(self, task_id: UUID) -> None:
        """Wait until a start of the task that is under way has succeeded or failed."""
        if (starting := self._starting.get(task_id)) is not None:
            await starting.wait()

    def _begin(self, spec: JobSpec) -> _Run:
        return _Run(monotonic(), self._traces.now(), str(spec.descriptor))

    async def _prune(self) -> None:
        while True:
            await trio.sleep(self._ledger.rules.prune_s)
            await self._expire()

    async def _expire(self) -> None:
        assert self._nursery is not None  # noqa: S101 - `run` calls this
        expired = self._ledger.expire()
        for lease in expired:
            if lease.state == "offered":
                self._lapse_log.info(lease.scheduler, "did not accept the offer of lease %s in time", lease.id)
                self._traces.discard(lease.trace)
                self._on_offer_lapsed(lease.scheduler)
                continue
            self._telemetry.expirations.add(1, {"job.state": "running" if lease.task_id else "none"})
            if lease.task_id is None:
                self._expiry_log.info(lease.scheduler, "lease %s expired without a job", lease.id)
                self._trace_end(lease, "it expired without a job")
            else:
                self._expiry_log.warning(
                    f"task {lease.task_id}", "ending it (lease %s): %s", lease.id, lease.end_reason
                )
                self._nursery.start_soon(self._end_job, lease.task_id, lease.end_reason)
        if any(lease.state != "offered" for lease in expired):
            await self._save()
        if expired:
            self._on_capacity_freed()

    async def _end_job(self, task_id: UUID, reason: str) -> None:
        await self._await_start(task_id)
        await self._jobs.terminate(task_id, reason)

    async def _on_event(self, event: JobEvent) -> None:
        lease = self._ledger.of_task(event.task_id)
        with logged_in(lease.trace.context(LEASE) if lease and lease.trace else None):
            if isinstance(event, Started | Stage):
                self._on_progress(event, lease)
            else:
                await self._on_end(event, lease)

    async def _on_end(self, event: Finished | Failed, lease: Lease | None) -> None:
        if isinstance(event, Failed) and event.start_failed is not None:
            self._on_failed_start(event.start_failed, event.reason)
        ended = self._ledger.end(event.task_id, "Finished" if isinstance(event, Finished) else "Failed")
        if lease is not None and ended is not None:
            self._log_end(event, lease)
            self._report_soon(ended)
            self._on_capacity_freed()
        elif event.task_id not in self._reporting:  # reported before the node was restarted
            self._jobs.record_reported(event.task_id)
        await self._save()

    def _on_failed_start(self, failed: float, reason: str) -> None:
        self._starts.on_failed(failed)
        if self._starts.max_unstarted == 0:
            logger.warning("no more offers until a job or a probe has started, because jobs do not start: %s", reason)

    def _on_progress(self, event: Started | Stage, lease: Lease | None) -> None:
        if isinstance(event, Started):
            self._ledger.record_started(event.task_id)
            self._starts.on_started(self._traces.now())
            self._on_capacity_freed()
            self._executor_log.info(f"task {event.task_id}", "its executor runs")
            run = self._runs.get(event.task_id)
            now = self._traces.now()
            event = Stage(event.task_id, "executor started", run.launched if run else now, now)
        if lease is not None:
            self._traces.record(
                lease.trace, event.name, event.start, end=event.end, parent=DISPATCH, attributes=_ids(lease)
            )

    def _trace_end(self, lease: Lease, error: str | None) -> None:
        """Record the spans of a lease that ends now and of its job."""
        if (trace := lease.trace) is not None:
            attributes = {**_ids(lease), "scheduler": lease.scheduler}
            self._traces.record(trace, LEASE, trace.offered, error=error, attributes=attributes)
            self._traces.record(trace, ROOT, trace.arrived, error=error, attributes=attributes)

    def _log_end(self, event: Finished | Failed, lease: Lease) -> None:
        run = self._runs.pop(event.task_id, None)
        duration_s = monotonic() - run.began if run else 0.0
        executor = run.executor if run else str(lease.executors[0])
        attributes = {"executor": executor, "outcome": type(event).__name__.lower()}
        self._telemetry.jobs_ended.add(1, attributes)
        self._telemetry.job_duration.record(duration_s, attributes)
        self._trace_end(lease, event.reason if isinstance(event, Failed) else None)
        if isinstance(event, Failed):
            self._end_log.error(f"task {event.task_id}", "failed: %s", event.reason, lines=event.last_lines)
        else:
            self._end_log.info(f"task {event.task_id}", "finished after %.1f s", duration_s)

    async def _save(self) -> None:
        await self._store.save(self._ledger.state())

    def _report_soon(self, ended: EndedJob) -> None:
        assert self._nursery is not None  # noqa: S101 - `run` calls this
        self._reporting.add(ended.task_id)
        self._nursery.start_soon(self._report, ended)

    async def _report(self, ended: EndedJob) -> None:
        """Report to the scheduler how its task ended, until it answers or `report_s` is over."""
        report = ReportJobStatus(task_id=ended.task_id, status=JobStatus(type=ended.status))
        outcome = "abandoned"
        with trio.move_on_after(self._report_s) as scope:
            for pause_s in _REPORT_BACKOFF.pauses():
                try:
                    await self._network.request(ended.scheduler, API, report, timeout_s=_REPORT_TIMEOUT_S)
                    outcome = "delivered"
                    break
                except RemoteRefused as error:  # the scheduler is reachable and takes no reports
                    outcome = "refused"
                    self._report_log.info(
                        ended.scheduler, "refused the report that task %s ended: %s", ended.task_id, error
                    )
                    break
                except NetworkError as error:
                    logger.debug(
                        "cannot report to %s the end of task %s yet: %s", ended.scheduler, ended.task_id, error
                    )
                await trio.sleep(pause_s)
        if scope.cancelled_caught:
            self._report_log.warning(
                ended.scheduler, "did not take the report that task %s ended (%s)", ended.task_id, ended.status.lower()
            )
        self._telemetry.reports.add(1, {"outcome": outcome})
        ids = {"task": str(ended.task_id), "lease": str(ended.lease_id)}
        self._traces.record(ended.trace, END, ended.ended, attributes={**ids, "report": outcome})
        self._ledger.record_reported(ended.task_id)
        await self._save()
        self._jobs.record_reported(ended.task_id)
        self._reporting.discard(ended.task_id)
        self._reported.notify()


def _ids(lease: Lease) -> dict[str, str]:
    """Return the attributes of each span of a lease."""
    return {"lease": str(lease.id), **({"task": str(lease.task_id)} if lease.task_id else {})}
