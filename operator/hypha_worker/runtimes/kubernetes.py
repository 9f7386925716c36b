"""Jobs as pods: a HyphaJob says what is to run, the operator runs it, and its status says what became of it.

What this node has to say (the lease's deadline, a cancellation, progress, that an end was reported) is written as soon
as the API server takes it; what the cluster says comes by one watch. A restarted node finds all of it in the HyphaJobs.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final
from uuid import UUID

import trio

from hypha_messages.progress import Progress
from hypha_network.quiet import Quiet
from hypha_resources.common import API_VERSION, WORKER_LABEL
from hypha_resources.job import Progress as JobProgress
from hypha_resources.job import job_name
from hypha_worker.config import KubernetesConfig
from hypha_worker.errors import NodeError
from hypha_worker.runtime import AdoptedJob, Failed, Finished, Job, JobEvent, LaunchError, Started
from hypha_worker.runtimes.kubernetes_api import (
    ApiRefused,
    ApiUnavailable,
    KubernetesApi,
    KubernetesError,
    Object,
    insist,
)
from hypha_worker.runtimes.kubernetes_objects import (
    SeenJob,
    end_of,
    hypha_job,
    job_secret,
    reported_status,
    see,
    timestamp,
)
from hypha_worker.runtimes.kubernetes_progress import ProgressTally
from hypha_worker.runtimes.kubernetes_tokens import Pod, TokenReviewer
from hypha_worker.throttle import Throttle

logger = logging.getLogger(__name__)
_quiet = Quiet(logger)

_LAUNCH_S: Final = 4.0
"""For each of the two writes of a launch: the scheduler waits for the answer."""
_PROGRESS_S: Final = 5.0
_WATCH_AGAIN_S: Final = 1.0
_LONGEST_REASON: Final = 1024


@dataclass
class _Tracked:
    """A job that this node has launched or adopted, until its end has been reported.

    Attributes:
        deadline: of its lease, in seconds since the epoch.
        tally: how far it is.
        deadlines: writes its deadline.
        progress: writes how far it is.
        uid: of its HyphaJob; None as long as that is being created.
        early: what was seen of it before its uid was known.
        pod: its pod, once there is one.
        launched: set once its launch has succeeded or failed.
        ended: set once it is terminal or gone.
        writing: ends what writes.
    """

    task_id: UUID
    deadline: float
    tally: ProgressTally
    deadlines: Throttle
    progress: Throttle
    uid: str | None = None
    early: SeenJob | None = None
    pod: Pod | None = None
    started: bool = False
    reported: bool = False
    launched: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    writing: trio.CancelScope = field(default_factory=trio.CancelScope)


class KubernetesRuntime:
    """A `Runtime` whose jobs are HyphaJobs; `open_kubernetes_runtime` makes one."""

    def __init__(
        self,
        api: KubernetesApi,
        config: KubernetesConfig,
        nursery: trio.Nursery,
        *,
        peer_id: str,
        lease_s: float,
        ended_s: float,
    ) -> None:
        self._api = api
        self._config = config
        self._nursery = nursery
        self._peer_id = peer_id
        self._lease_s = lease_s
        self._ended_s = ended_s
        self._jobs: dict[UUID, _Tracked] = {}
        self._path = f"/apis/{API_VERSION}/namespaces/{config.namespace}/hyphajobs"
        self._selector = f"{WORKER_LABEL}={config.worker}"
        # Two events a job at most, and leases bound the jobs.
        self._send, self._receive = trio.open_memory_channel[JobEvent](math.inf)
        user = f"system:serviceaccount:{config.namespace}:{config.worker}-job"
        self._reviewer = TokenReviewer(api, user, config.audience)

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """What becomes of the jobs; a restarted node hears of each end again until `note_reported`."""
        return self._receive

    async def launch(self, job: Job) -> None:
        """Create the HyphaJob and its Secret; LaunchError if the cluster does not take them."""
        if job.task_id in self._jobs:
            raise LaunchError(f"task {job.task_id} exists already")
        tracked = self._jobs[job.task_id] = self._track(job)
        unclear = True
        try:
            await self._create(job, tracked)
        except KubernetesError as error:
            unclear = tracked.uid is not None or isinstance(error, ApiUnavailable)
            self._forget(tracked, unclear=unclear)
            raise LaunchError(_advice(error)) from error
        except BaseException as error:
            self._forget(tracked, unclear=not isinstance(error, LaunchError))
            raise
        finally:
            tracked.launched.set()
        self._nursery.start_soon(self._write, tracked)
        if tracked.early is not None and tracked.early.uid == tracked.uid:
            self._advance(tracked, tracked.early)

    async def extend(self, task_id: UUID, deadline: float) -> None:
        """Let the job run until `deadline` (seconds since the epoch) if the node is gone. Unknown jobs are ignored."""
        await trio.lowlevel.checkpoint()
        if tracked := self._jobs.get(task_id):
            tracked.deadline = deadline
            tracked.deadlines.want()

    async def terminate(self, task_id: UUID, reason: str) -> None:
        """Tell the job to end and return once nothing of it runs. Unknown jobs are ignored."""
        if (tracked := self._jobs.get(task_id)) is None:
            return
        await tracked.launched.wait()
        if tracked.uid is None or tracked.ended.is_set():
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel, task_id, reason)
            await tracked.ended.wait()
            nursery.cancel_scope.cancel()

    async def adopt(self) -> list[AdoptedJob]:
        """Find the HyphaJobs of an earlier node; waits for the API server. NodeError if it knows no HyphaJobs."""
        try:
            found, version = await insist("HyphaJobs", partial(self._api.list, self._path, self._selector))
        except ApiRefused as error:
            raise NodeError(_advice(error)) from error
        adopted = [job for item in found if (job := self._adopt(item)) is not None]
        self._nursery.start_soon(self._follow, version)
        return adopted

    def note_progress(self, task_id: UUID, progress: Progress) -> None:
        """Show in the HyphaJob how far the job is."""
        if tracked := self._jobs.get(task_id):
            tracked.tally.add(progress)
            tracked.progress.want()

    def note_reported(self, task_id: UUID) -> None:
        """Note in the HyphaJob that its scheduler knows how it ended, or will never know."""
        if (tracked := self._jobs.get(task_id)) is not None and not tracked.reported:
            tracked.reported = True
            self._nursery.start_soon(self._conclude, tracked)

    async def authenticate(self, token: str) -> UUID | None:
        """Return the task whose pod a token was made for; None if it is of none. HttpError (503) if nobody can tell."""
        pod = await self._reviewer.pod(token)
        if pod is None:
            return None
        return next((t.task_id for t in self._jobs.values() if t.pod == pod and not t.ended.is_set()), None)

    def _track(self, job: Job, progress: JobProgress | None = None) -> _Tracked:
        return _Tracked(
            job.task_id,
            job.deadline,
            ProgressTally(trio.current_time(), progress),
            Throttle(self._lease_s / 3, partial(self._write_deadline, job.task_id)),
            Throttle(_PROGRESS_S, partial(self._write_progress, job.task_id)),
        )

    async def _create(self, job: Job, tracked: _Tracked) -> None:
        body = hypha_job(job, self._config, self._peer_id)
        created = see(await self._api.apply(self._of(job.task_id), body, deadline_s=_LAUNCH_S))
        if created.terminal or created.spec.cancel is not None:
            raise LaunchError(f"task {job.task_id} exists already, and is ending or has ended")
        tracked.uid = created.uid
        secrets = f"/api/v1/namespaces/{self._config.namespace}/secrets"
        try:
            await self._api.create(secrets, job_secret(job, self._config, created.uid), deadline_s=_LAUNCH_S)
        except ApiRefused as error:
            if error.status != HTTPStatus.CONFLICT:  # else an attempt that had no answer made it
                raise

    def _forget(self, tracked: _Tracked, *, unclear: bool) -> None:
        """A launch failed; if its HyphaJob may be there all the same, it is told to end."""
        del self._jobs[tracked.task_id]
        tracked.uid = None
        if unclear:
            self._nursery.start_soon(self._cancel, tracked.task_id, "it could not be launched")

    def _adopt(self, found: Object) -> AdoptedJob | None:
        now = time.time()
        try:
            seen = see(found)
            lapses = seen.spec.lease.deadline.timestamp()
            job = seen.job(lapses if seen.terminal else max(lapses, now + self._lease_s))
        except ValueError as error:
            name = found.get("metadata", {}).get("name")
            logger.warning("HyphaJob %s is left alone, this version cannot read it: %s", name, error)
            return None
        if seen.spec.worker_ref.uid != self._config.worker_uid or (
            seen.reported and not self._still_renewed(seen, now)
        ):
            return None
        tracked = self._jobs[job.task_id] = self._track(job, seen.status.progress)
        tracked.uid = seen.uid
        tracked.started = seen.status.phase == "Running"
        tracked.launched.set()
        if not seen.terminal:
            tracked.deadlines.want()
        self._nursery.start_soon(self._write, tracked)
        self._advance(tracked, seen)
        return AdoptedJob(job, running=not seen.terminal)

    def _still_renewed(self, seen: SeenJob, now: float) -> bool:
        """Whether the lease of a job that finished may still be renewed: its end is then reported once more."""
        completed = seen.status.completion_time
        return (
            seen.status.phase == "Succeeded" and completed is not None and now < completed.timestamp() + self._ended_s
        )

    async def _follow(self, version: str | None) -> None:
        """Take in what becomes of the HyphaJobs, for ever; whatever breaks the watch, all are looked at again."""
        while True:
            try:
                if version is None:
                    version = await self._look_again()
                version = await self._api.watch(self._path, self._selector, version, self._note)
            except KubernetesError as error:
                version = None
                _quiet.info("HyphaJobs", "looking at all HyphaJobs again: %s", error)
                await trio.sleep(_WATCH_AGAIN_S)

    async def _look_again(self) -> str:
        known = [tracked for tracked in self._jobs.values() if tracked.uid is not None]
        found, version = await self._api.list(self._path, self._selector)
        for item in found:
            self._note("MODIFIED", item)
        uids = {item["metadata"]["uid"] for item in found}
        for tracked in known:
            if tracked.uid not in uids:
                self._end(tracked, _deleted(tracked.task_id))
        return version

    def _note(self, kind: str, found: Object) -> None:
        try:
            seen = see(found)
        except ValueError as error:
            _quiet.warning("HyphaJobs", "a HyphaJob cannot be read: %s", error)
            return
        tracked = self._jobs.get(seen.spec.task_id)
        if tracked is not None and tracked.uid is None:
            tracked.early = seen
        elif tracked is not None and tracked.uid == seen.uid:
            if kind == "DELETED":
                self._end(tracked, _deleted(tracked.task_id))
            else:
                self._advance(tracked, seen)
        elif kind != "DELETED" and seen.spec.worker_ref.uid == self._config.worker_uid:
            self._settle(seen)

    def _settle(self, seen: SeenJob) -> None:
        """End a job that runs under no lease: its launch was given up when nobody knew whether it had succeeded."""
        if not seen.terminal and seen.spec.cancel is None:
            self._nursery.start_soon(self._cancel, seen.spec.task_id, "the worker knows no lease for it")
        elif seen.terminal and not seen.reported:
            self._nursery.start_soon(self._write_reported, seen.spec.task_id)

    def _advance(self, tracked: _Tracked, seen: SeenJob) -> None:
        status = seen.status
        if status.pod_name and status.pod_uid:
            tracked.pod = Pod(status.pod_name, status.pod_uid)
        if status.phase == "Running" and not tracked.started:
            tracked.started = True
            self._send.send_nowait(Started(tracked.task_id))
        if seen.terminal:
            self._end(tracked, end_of(seen))

    def _end(self, tracked: _Tracked, event: Finished | Failed) -> None:
        if not tracked.ended.is_set():
            tracked.ended.set()
            self._send.send_nowait(event)

    async def _write(self, tracked: _Tracked) -> None:
        with tracked.writing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tracked.deadlines.run)
                nursery.start_soon(tracked.progress.run)

    async def _conclude(self, tracked: _Tracked) -> None:
        tracked.writing.cancel()
        await tracked.progress.flush()
        await self._write_reported(tracked.task_id)
        self._jobs.pop(tracked.task_id, None)

    async def _write_deadline(self, task_id: UUID) -> None:
        if (tracked := self._jobs.get(task_id)) is not None and not tracked.ended.is_set():
            deadline = timestamp(tracked.deadline).isoformat()
            body = {"spec": {"lease": {"deadline": deadline}}}
            await self._put(task_id, partial(self._api.merge, self._of(task_id), body))

    async def _write_progress(self, task_id: UUID) -> None:
        if (tracked := self._jobs.get(task_id)) is not None:
            progress = tracked.tally.sum_up(trio.current_time()).model_dump(mode="json", exclude_none=True)
            body = {"status": {"progress": progress}}
            await self._put(task_id, partial(self._api.merge, f"{self._of(task_id)}/status", body))

    async def _write_reported(self, task_id: UUID) -> None:
        body = {"apiVersion": API_VERSION, "kind": "HyphaJob", "status": reported_status(time.time())}
        await self._put(task_id, partial(self._api.apply, f"{self._of(task_id)}/status", body))

    async def _cancel(self, task_id: UUID, reason: str) -> None:
        body = {"spec": {"cancel": {"reason": reason[:_LONGEST_REASON] or "cancelled"}}}
        there = await self._put(task_id, partial(self._api.merge, self._of(task_id), body))
        if not there and (tracked := self._jobs.get(task_id)) is not None:
            self._end(tracked, _deleted(task_id))

    async def _put(self, task_id: UUID, write: Callable[[], Awaitable[Object]]) -> bool:
        """Write to a HyphaJob, however long the API server is away; False if there is none."""
        try:
            await insist(job_name(task_id), write)
        except ApiRefused as error:
            if not error.missing:
                _quiet.warning(job_name(task_id), "the API server refused a change of it: %s", error)
            return not error.missing
        return True

    def _of(self, task_id: UUID) -> str:
        return f"{self._path}/{job_name(task_id)}"


def _deleted(task_id: UUID) -> Failed:
    return Failed(task_id, "its HyphaJob was deleted")


def _advice(error: KubernetesError) -> str:
    """Say what the owner of the cluster can do."""
    if not isinstance(error, ApiRefused):
        return str(error)
    if error.missing:
        return f"the cluster knows no HyphaJobs ({error}): install the chart's custom resource definitions"
    if error.status == HTTPStatus.FORBIDDEN:
        quota = "exceeded quota" in str(error)
        return f"{error}; " + ("raise the namespace's quota" if quota else "does the node have its Role?")
    return f"the API server refused: {error}"


@asynccontextmanager
async def open_kubernetes_runtime(
    api: KubernetesApi, config: KubernetesConfig, *, peer_id: str, lease_s: float, ended_s: float
) -> AsyncIterator[KubernetesRuntime]:
    """Run jobs of a HyphaWorker; when this ends they go on, for the next node to adopt.

    Args:
        api: the API server.
        config: which worker's jobs they are.
        peer_id: by which bridges know this node.
        lease_s: how long a lease runs from each renewal.
        ended_s: how long the lease of a job that finished may still be renewed.
    """
    async with trio.open_nursery() as nursery:
        yield KubernetesRuntime(api, config, nursery, peer_id=peer_id, lease_s=lease_s, ended_s=ended_s)
        nursery.cancel_scope.cancel()
