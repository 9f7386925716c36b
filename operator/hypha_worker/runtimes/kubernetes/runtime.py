"""Runs jobs as pods. The node creates a HyphaJob, the operator runs it, and its status holds the outcome.

The node writes deadlines, cancellations, progress and reported ends as soon as the API server accepts them. It follows
the HyphaJobs by one watch. A restarted node finds everything in the HyphaJobs and claims them. A node whose job another
node has claimed ends and writes no more.
"""

import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from uuid import UUID

import trio

from hypha_contracts.kubernetes_errors import ApiError, Forbidden, NotFound, Refused, Unavailable
from hypha_contracts.names import job_user
from hypha_contracts.node_config import KubernetesConfig
from hypha_contracts.times import KEEP_ENDED_S
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_resources.job import Progress
from hypha_worker.errors import NodeError
from hypha_worker.job import AdoptedJob, Failed, Finished, Job, JobEvent, LaunchError, Started
from hypha_worker.progress import ProgressTally, Report, interval_s, stated_batches
from hypha_worker.runtimes.kubernetes.api import KubernetesApi, Object, retry_until_done
from hypha_worker.runtimes.kubernetes.jobs import HyphaJobs, TakenOverError
from hypha_worker.runtimes.kubernetes.objects import ObservedJob, end_of, parse
from hypha_worker.runtimes.kubernetes.throttle import Throttle
from hypha_worker.runtimes.kubernetes.tokens import Pod, TokenVerifier

logger = logging.getLogger(__name__)
_rate_limited_log = RateLimitedLogger(logger)

_RELIST_DELAY_S: Final = 1.0


@dataclass
class _Tracked:
    """A job that this node has launched or adopted, until the node has reported its end.

    Attributes:
        deadline: of its lease, in seconds since the epoch.
        uid: of its HyphaJob, or None while that is being created.
        early: its HyphaJob as observed before its uid was known.
        ours: whether its HyphaJob has named this node. If it names another node later, that node has claimed it.
        claimed: set once this node has claimed it, or its launch has failed.
        ended: set once it is terminal or gone.
        traced: whether the stages of its start are still to be reported for its trace.
        writing: cancels the writers.
    """

    task_id: UUID
    deadline: float
    tally: ProgressTally
    deadlines: Throttle
    progress: Throttle
    uid: str | None = None
    early: ObservedJob | None = None
    pod: Pod | None = None
    ours: bool = False
    started: bool = False
    traced: bool = False
    reported: bool = False
    claimed: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    writing: trio.CancelScope = field(default_factory=trio.CancelScope)


class KubernetesRuntime:
    """A `Runtime` whose jobs are HyphaJobs. `open_kubernetes_runtime` makes one."""

    def __init__(
        self,
        api: KubernetesApi,
        config: KubernetesConfig,
        nursery: trio.Nursery,
        *,
        peer_id: str,
        lease_s: float,
        ended_s: float,
        keep_ended_s: int,
    ) -> None:
        self._hypha_jobs = HyphaJobs(api, config, peer_id, keep_ended_s)
        self._config = config
        self._nursery = nursery
        self._lease_s = lease_s
        self._ended_s = ended_s
        self._jobs: dict[UUID, _Tracked] = {}
        # A few events a job at most, and leases bound the jobs.
        self._send, self._receive = trio.open_memory_channel[JobEvent](math.inf)
        user = job_user(config.namespace, config.worker)
        self._tokens = TokenVerifier(api, user, config.audience)

    def configure(self, *, lease_s: float, ended_s: float, keep_ended_s: int) -> None:
        """Use other times from now on; see `open_kubernetes_runtime`."""
        self._lease_s, self._ended_s, self._hypha_jobs.keep_ended_s = lease_s, ended_s, keep_ended_s

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """The events of all jobs. A restarted node gets the end of a job again until `record_reported`."""
        return self._receive

    async def launch(self, job: Job) -> None:
        """Create the HyphaJob and its Secret. LaunchError if the cluster refuses them.

        If it refuses only the Secret, the HyphaJob stays for as long as that of an ended job.
        """
        if job.task_id in self._jobs:
            raise LaunchError(f"task {job.task_id} exists already")
        tracked = self._jobs[job.task_id] = self._track(job)
        unclear = True
        try:
            await self._create(job, tracked)
        except ApiError as error:
            unclear = tracked.uid is not None or isinstance(error, Unavailable)
            self._abandon_launch(tracked, unclear=unclear)
            raise LaunchError(_advice(error), recorded=unclear) from error
        except BaseException as error:
            self._abandon_launch(tracked, unclear=not isinstance(error, LaunchError))
            raise
        finally:
            tracked.claimed.set()
        self._nursery.start_soon(self._write, tracked)
        if tracked.early is not None and tracked.early.uid == tracked.uid:
            self._advance(tracked, tracked.early)

    async def extend(self, task_id: UUID, deadline: float) -> None:
        """Let the job run until `deadline` (seconds since the epoch) if the node is gone. No-op if unknown."""
        await trio.lowlevel.checkpoint()
        if tracked := self._jobs.get(task_id):
            tracked.deadline = deadline
            tracked.deadlines.want()

    async def terminate(self, task_id: UUID, reason: str) -> None:
        """Cancel the job and return once nothing of it runs. No-op if unknown."""
        if (tracked := self._jobs.get(task_id)) is None:
            return
        await tracked.claimed.wait()
        if tracked.uid is None or tracked.ended.is_set():
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel, tracked, reason)
            await tracked.ended.wait()
            nursery.cancel_scope.cancel()

    async def adopt(self) -> list[AdoptedJob]:
        """Find the HyphaJobs of an earlier node, once the API server answers. NodeError if it knows no HyphaJobs."""
        try:
            found, version = await retry_until_done("HyphaJobs", self._hypha_jobs.list)
        except Refused as error:
            raise NodeError(_advice(error)) from error
        found.sort(key=lambda item: str(item["metadata"].get("creationTimestamp")))
        adopted = [job for item in found if (job := self._adopt(item)) is not None]
        self._nursery.start_soon(self._follow, version)
        return adopted

    def record_progress(self, task_id: UUID, report: Report) -> None:
        """Record the progress in the HyphaJob."""
        if tracked := self._jobs.get(task_id):
            tracked.tally.add(report, trio.current_time())
            tracked.progress.want()

    def record_reported(self, task_id: UUID) -> None:
        """Record in the HyphaJob that the scheduler knows how the job ended, or never will."""
        if (tracked := self._jobs.get(task_id)) is not None and not tracked.reported:
            tracked.reported = True
            self._nursery.start_soon(self._conclude, tracked)

    async def authenticate(self, token: str) -> UUID | None:
        """Return the task whose pod the token was made for, or None. HttpError (503) if it cannot be verified now."""
        pod = await self._tokens.pod(token)
        if pod is None:
            return None
        return next((t.task_id for t in self._jobs.values() if t.pod == pod and not t.ended.is_set()), None)

    def _track(self, job: Job, progress: Progress | None = None) -> _Tracked:
        return _Tracked(
            job.task_id,
            job.deadline,
            ProgressTally(trio.current_time(), progress, stated_batches(job.spec)),
            Throttle(lambda: self._lease_s / 3, partial(self._write_deadline, job.task_id)),
            Throttle(lambda: interval_s(len(self._jobs)), partial(self._write_progress, job.task_id)),
            traced=job.traced,
        )

    async def _create(self, job: Job, tracked: _Tracked) -> None:
        created = await self._hypha_jobs.create(job)
        if created.terminal or created.spec.cancel is not None:
            raise LaunchError(f"task {job.task_id} exists already, and is ending or has ended")
        tracked.uid, tracked.ours = created.uid, True
        await self._hypha_jobs.create_secret(job, created.uid)

    def _abandon_launch(self, tracked: _Tracked, *, unclear: bool) -> None:
        """Drop a job whose launch failed, and cancel its HyphaJob if it may exist nevertheless."""
        del self._jobs[tracked.task_id]
        tracked.uid = None
        if unclear:
            self._nursery.start_soon(self._abandon, tracked.task_id, "it could not be launched")

    def _adopt(self, found: Object) -> AdoptedJob | None:
        now = time.time()
        try:
            observed = parse(found)
            lapses = observed.spec.lease.deadline.timestamp()
            job = observed.job(lapses if observed.terminal else max(lapses, now + self._lease_s))
        except ValueError as error:
            name = found.get("metadata", {}).get("name")
            logger.warning("ignoring HyphaJob %s, which this version cannot read: %s", name, error)
            return None
        if observed.spec.worker_ref.uid != self._config.worker_uid or (
            observed.reported and not self._still_renewed(observed, now)
        ):
            return None
        tracked = self._jobs[job.task_id] = self._track(job, observed.status.progress)
        tracked.uid = observed.uid
        tracked.started = observed.status.phase == "Running"
        tracked.traced = job.traced and not tracked.started
        if observed.terminal:
            tracked.claimed.set()
        self._nursery.start_soon(self._write, tracked)
        self._advance(tracked, observed)
        return AdoptedJob(job, running=not observed.terminal, started=tracked.started)

    def _still_renewed(self, observed: ObservedJob, now: float) -> bool:
        """Whether the lease of a finished job can still be renewed, so that its end must be reported again."""
        completed = observed.status.completion_time
        return (
            observed.status.phase == "Succeeded"
            and completed is not None
            and now < completed.timestamp() + self._ended_s
        )

    async def _follow(self, version: str | None) -> None:
        """Watch the HyphaJobs for ever. After a broken watch, list all of them again."""
        while True:
            try:
                if version is None:
                    version = await self._relist()
                version = await self._hypha_jobs.watch(version, self._record)
            except ApiError as error:
                version = None
                _rate_limited_log.info("HyphaJobs", "listing all HyphaJobs again: %s", error)
                await trio.sleep(_RELIST_DELAY_S)

    async def _relist(self) -> str:
        known = [tracked for tracked in self._jobs.values() if tracked.uid is not None]
        found, version = await self._hypha_jobs.list()
        for item in found:
            self._record("MODIFIED", item)
        uids = {item["metadata"]["uid"] for item in found}
        for tracked in known:
            if tracked.uid not in uids:
                self._end(tracked, _deleted(tracked.task_id))
        return version

    def _record(self, kind: str, found: Object) -> None:
        try:
            observed = parse(found)
        except ValueError as error:
            _rate_limited_log.warning("HyphaJobs", "a HyphaJob cannot be read: %s", error)
            return
        tracked = self._jobs.get(observed.spec.task_id)
        if tracked is not None and tracked.uid is None:
            tracked.early = observed
        elif tracked is not None and tracked.uid == observed.uid:
            if kind == "DELETED":
                self._end(tracked, _deleted(tracked.task_id))
            else:
                self._advance(tracked, observed)
        elif kind != "DELETED" and observed.spec.worker_ref.uid == self._config.worker_uid:
            self._reconcile_unknown(observed)

    def _reconcile_unknown(self, observed: ObservedJob) -> None:
        """End a job whose launch this node abandoned because the API server did not confirm it.

        Jobs that another node launched are ignored. A replaced node may launch jobs until it notices its successor, and
        a job that no node adopts ends with its lease.
        """
        if observed.spec.controller != self._hypha_jobs.controller:
            return
        if not observed.terminal and observed.spec.cancel is None:
            self._nursery.start_soon(self._abandon, observed.spec.task_id, "the worker knows no lease for it")
        elif observed.terminal and not observed.reported:
            self._nursery.start_soon(self._hypha_jobs.record_reported, observed.spec.task_id)

    def _advance(self, tracked: _Tracked, observed: ObservedJob) -> None:
        """Update a job from its HyphaJob. Once that names another node, this node yields to its successor."""
        status = observed.status
        if observed.spec.controller == self._hypha_jobs.controller:
            tracked.ours = True
        elif tracked.ours:
            self._nursery.start_soon(self._yield_to_successor, tracked.task_id)
            return
        if status.pod_name and status.pod_uid:
            tracked.pod = Pod(status.pod_name, status.pod_uid)
        if tracked.traced and (status.phase == "Running" or observed.terminal):
            tracked.traced = False
            for stage in observed.stages():
                self._send.send_nowait(stage)
        if status.phase == "Running" and not tracked.started:
            tracked.started = True
            self._send.send_nowait(Started(tracked.task_id))
        if observed.terminal:
            self._end(tracked, end_of(observed))

    async def _yield_to_successor(self, task_id: UUID) -> None:
        raise TakenOverError(task_id)

    def _end(self, tracked: _Tracked, event: Finished | Failed) -> None:
        if not tracked.ended.is_set():
            tracked.ended.set()
            tracked.tally.end()
            self._send.send_nowait(event)

    async def _write(self, tracked: _Tracked) -> None:
        """Claim a job if it was adopted. Then write its deadline and progress until its end."""
        with tracked.writing:
            if not tracked.claimed.is_set():
                try:
                    await self._hypha_jobs.claim(tracked.task_id, lambda: tracked.deadline)
                finally:
                    tracked.claimed.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tracked.deadlines.run)
                nursery.start_soon(tracked.progress.run)

    async def _conclude(self, tracked: _Tracked) -> None:
        tracked.writing.cancel()
        if tracked.tally.progress.estimated_end:
            tracked.progress.want()  # an ended job has none
        await tracked.progress.flush()
        await self._hypha_jobs.record_reported(tracked.task_id)
        self._jobs.pop(tracked.task_id, None)

    async def _write_deadline(self, task_id: UUID) -> None:
        if (tracked := self._jobs.get(task_id)) is not None and not tracked.ended.is_set():
            await self._hypha_jobs.extend(task_id, lambda: tracked.deadline)

    async def _write_progress(self, task_id: UUID) -> None:
        if (tracked := self._jobs.get(task_id)) is not None:
            await self._hypha_jobs.write_progress(task_id, tracked.tally.sum_up(trio.current_time(), time.time()))

    async def _cancel(self, tracked: _Tracked, reason: str) -> None:
        if not await self._hypha_jobs.cancel(tracked.task_id, reason):
            self._end(tracked, _deleted(tracked.task_id))

    async def _abandon(self, task_id: UUID, reason: str) -> None:
        """Cancel a job without a known lease, unless another node has claimed it."""
        with suppress(TakenOverError):
            await self._hypha_jobs.cancel(task_id, reason)


def _deleted(task_id: UUID) -> Failed:
    return Failed(task_id, "its HyphaJob was deleted")


def _advice(error: ApiError) -> str:
    """Say what the owner of the cluster can do."""
    if not isinstance(error, Refused):
        return str(error)
    if isinstance(error, NotFound):
        return f"the cluster knows no HyphaJobs ({error}). Install the chart's custom resource definitions."
    if isinstance(error, Forbidden):
        quota = "exceeded quota" in str(error)
        return f"{error}. " + ("Raise the namespace's quota." if quota else "Check that the node has its Role.")
    return f"the API server refused: {error}"


@asynccontextmanager
async def open_kubernetes_runtime(
    api: KubernetesApi,
    config: KubernetesConfig,
    *,
    peer_id: str,
    lease_s: float,
    ended_s: float,
    keep_ended_s: int = KEEP_ENDED_S,
) -> AsyncIterator[KubernetesRuntime]:
    """Run the jobs of a HyphaWorker. At the end they go on, for the next node to adopt.

    A lease lasts for `lease_s` from each renewal. The lease of a finished job can be renewed for `ended_s`.
    An ended HyphaJob is kept for `keep_ended_s`.
    """
    async with trio.open_nursery() as nursery:
        times = {"lease_s": lease_s, "ended_s": ended_s}
        yield KubernetesRuntime(api, config, nursery, peer_id=peer_id, **times, keep_ended_s=keep_ended_s)
        nursery.cancel_scope.cancel()
