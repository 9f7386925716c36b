"""HyphaJobs of one worker, as one process of its controller reads and writes them.

A pod that was replaced may live on for a while beside its successor. Each process therefore has an id of its own, and
each HyphaJob names in `spec.controller` the one that answers for it: who launched it, or the latest to claim it. From
then on the API server refuses what any other wants to change of its specification.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from hypha_contracts.kubernetes_errors import Conflict, Invalid, NotFound, Refused
from hypha_contracts.names import API_VERSION, JOB_KIND, JOBS, WORKER_LABEL, job_name
from hypha_contracts.node_config import KubernetesConfig
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_resources.job import Progress
from hypha_worker.errors import NodeError
from hypha_worker.job import Job
from hypha_worker.runtimes.kubernetes.api import KubernetesApi, Object, insist
from hypha_worker.runtimes.kubernetes.objects import SeenJob, hypha_job, job_secret, reported_status, see, timestamp

logger = logging.getLogger(__name__)
_rate_limited_log = RateLimitedLogger(logger)

_LAUNCH_S: Final = 4.0
"""For each of the two writes of a launch: the scheduler waits for the answer."""
_LONGEST_REASON: Final = 1024


class TakenOverError(NodeError):
    """Another process of this worker's controller answers for its jobs now."""

    def __init__(self, task_id: UUID) -> None:
        super().__init__(
            f"another controller of this worker has taken over, {job_name(task_id)} names it: this one ends, the jobs "
            "go on; if this happens again and again, look for a second pod of the controller"
        )


class HyphaJobs:
    """The HyphaJobs of a worker.

    What changes one that exists is written however long the API server is away; False is returned if there is none.

    Attributes:
        controller: the id of this process.
    """

    def __init__(self, api: KubernetesApi, config: KubernetesConfig, peer_id: str) -> None:
        self.controller = uuid4()
        self._api = api
        self._config = config
        self._peer_id = peer_id
        self._path = f"/apis/{API_VERSION}/namespaces/{config.namespace}/{JOBS}"
        self._selector = f"{WORKER_LABEL}={config.worker}"

    async def list(self) -> tuple[list[Object], str]:
        """Return all that are there, and the resource version to watch from; ApiError."""
        return await self._api.list(self._path, self._selector)

    async def watch(self, version: str, record: Callable[[str, Object], None]) -> str:
        """Call `record` with each change, as `KubernetesApi.watch` does; ApiError."""
        return await self._api.watch(self._path, self._selector, version, record)

    async def create(self, job: Job) -> SeenJob:
        """Create the HyphaJob of a job, and answer for it; ApiError."""
        body = hypha_job(job, self._config, self._peer_id, self.controller)
        return see(await self._api.apply(self._of(job.task_id), body, deadline_s=_LAUNCH_S))

    async def create_secret(self, job: Job, owner_uid: str) -> None:
        """Create the Secret of a job, which goes with its HyphaJob; ApiError."""
        path = f"/api/v1/namespaces/{self._config.namespace}/secrets"
        with suppress(Conflict):  # an earlier attempt may have created it
            await self._api.create(path, job_secret(job, self._config, owner_uid), deadline_s=_LAUNCH_S)

    async def claim(self, task_id: UUID, deadline: float) -> bool:
        """Answer for a job from now on, whoever has done so before."""
        spec = {"controller": str(self.controller), "lease": {"deadline": timestamp(deadline).isoformat()}}
        return await self._put(task_id, partial(self._api.merge, self._of(task_id), {"spec": spec}))

    async def extend(self, task_id: UUID, deadline: float) -> bool:
        """Move the deadline of a job's lease; TakenOverError."""
        return await self._change(task_id, "lease/deadline", timestamp(deadline).isoformat())

    async def cancel(self, task_id: UUID, reason: str) -> bool:
        """Tell a job to end; TakenOverError."""
        return await self._change(task_id, "cancel", {"reason": reason[:_LONGEST_REASON] or "cancelled"})

    async def show_progress(self, task_id: UUID, progress: Progress) -> bool:
        """Show how far a job is."""
        body = {"status": {"progress": progress.model_dump(mode="json", exclude_none=True)}}
        return await self._put(task_id, partial(self._api.merge, f"{self._of(task_id)}/status", body))

    async def record_reported(self, task_id: UUID) -> bool:
        """Record that the scheduler of a job knows how it ended, or will never know."""
        body = {"apiVersion": API_VERSION, "kind": JOB_KIND, "status": reported_status(time.time())}
        return await self._put(task_id, partial(self._api.apply, f"{self._of(task_id)}/status", body))

    async def _change(self, task_id: UUID, field: str, value: Any) -> bool:
        """Set a field of the specification, as long as this process answers for the job; TakenOverError."""
        path = self._of(task_id)
        operations = [
            {"op": "test", "path": "/spec/controller", "value": str(self.controller)},
            {"op": "add", "path": f"/spec/{field}", "value": value},
        ]

        async def change() -> Object:
            try:
                return await self._api.patch(path, operations)
            except Invalid:
                self._check(task_id, (await self._api.get(path))["spec"].get("controller"))
                raise

        return await self._put(task_id, change)

    def _check(self, task_id: UUID, named: str | None) -> None:
        if named is None:
            raise NodeError("HyphaJobs have no spec.controller here: upgrade their custom resource definition")
        if named != str(self.controller):
            raise TakenOverError(task_id)

    async def _put(self, task_id: UUID, write: Callable[[], Awaitable[Object]]) -> bool:
        try:
            await insist(job_name(task_id), write)
        except NotFound:
            return False
        except Refused as error:
            _rate_limited_log.warning(job_name(task_id), "the API server refused a change of it: %s", error)
        return True

    def _of(self, task_id: UUID) -> str:
        return f"{self._path}/{job_name(task_id)}"
