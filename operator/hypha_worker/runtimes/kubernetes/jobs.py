"""Reads and writes the HyphaJobs of one worker.

A replaced pod may live on for a while beside its successor. Each process therefore has an id of its own, and each
HyphaJob names in `spec.controller` its owner: the process that launched it or the latest one to claim it. The API
server refuses changes of its specification by any other process.
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
from hypha_contracts.text import escaped
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_resources.job import Progress
from hypha_worker.errors import NodeError
from hypha_worker.job import Job
from hypha_worker.runtimes.kubernetes.api import KubernetesApi, Object, retry_until_done
from hypha_worker.runtimes.kubernetes.objects import (
    ObservedJob,
    hypha_job,
    job_secret,
    parse,
    reported_status,
    timestamp,
)

_rate_limited_log = RateLimitedLogger(logging.getLogger(__name__))

_LAUNCH_S: Final = 4.0
"""The deadline of each of the two writes of a launch, because the scheduler waits for the answer."""
_MAX_REASON_CHARS: Final = 1024


class TakenOverError(NodeError):
    """Another process of this worker's controller owns its jobs now."""

    def __init__(self, task_id: UUID) -> None:
        super().__init__(
            f"another controller of this worker has taken over {job_name(task_id)}. This one ends and the jobs go on. "
            "If this happens repeatedly, look for a second pod of the controller."
        )


class HyphaJobs:
    """The HyphaJobs of a worker.

    Changes of an existing HyphaJob are retried until the API server accepts them. They return False if there is none.

    Attributes:
        controller: the id of this process.
        keep_ended_s: how long a HyphaJob that is created from now on is kept once it has ended.
    """

    def __init__(self, api: KubernetesApi, config: KubernetesConfig, peer_id: str, keep_ended_s: int) -> None:
        self.controller = uuid4()
        self.keep_ended_s = keep_ended_s
        self._api = api
        self._config = config
        self._peer_id = peer_id
        self._path = f"/apis/{API_VERSION}/namespaces/{config.namespace}/{JOBS}"
        self._selector = f"{WORKER_LABEL}={config.worker}"

    async def list(self) -> tuple[list[Object], str]:
        """Return all HyphaJobs, and the resource version to watch from. ApiError."""
        return await self._api.list(self._path, self._selector)

    async def watch(self, version: str, record: Callable[[str, Object], None]) -> str:
        """Call `record` with each change, as `KubernetesApi.watch` does. ApiError."""
        return await self._api.watch(self._path, {"labelSelector": self._selector}, version, record)

    async def create(self, job: Job) -> ObservedJob:
        """Create the HyphaJob of a job and own it. ApiError."""
        body = hypha_job(job, self._config, self._peer_id, self.controller, self.keep_ended_s)
        return parse(await self._api.apply(self._of(job.task_id), body, deadline_s=_LAUNCH_S))

    async def create_secret(self, job: Job, owner_uid: str) -> None:
        """Create the Secret of a job, which is deleted with its HyphaJob. ApiError."""
        path = f"/api/v1/namespaces/{self._config.namespace}/secrets"
        with suppress(Conflict):  # an earlier attempt may have created it
            await self._api.create(path, job_secret(job, self._config, owner_uid), deadline_s=_LAUNCH_S)

    async def claim(self, task_id: UUID, deadline: Callable[[], float]) -> bool:
        """Become the owner of a job, whatever process owned it before. The deadline is that of `extend`."""

        async def write() -> Object:
            lease = {"deadline": timestamp(deadline()).isoformat()}
            return await self._api.merge(
                self._of(task_id), {"spec": {"controller": str(self.controller), "lease": lease}}
            )

        return await self._put(task_id, write)

    async def extend(self, task_id: UUID, deadline: Callable[[], float]) -> bool:
        """Write the deadline of a job's lease. TakenOverError.

        Args:
            task_id: the job.
            deadline: returns the current deadline, in seconds since the epoch. It is called before each attempt, so
                that the first one after an outage does not write a deadline that has passed.
        """
        return await self._change(task_id, "lease/deadline", lambda: timestamp(deadline()).isoformat())

    async def cancel(self, task_id: UUID, reason: str) -> bool:
        """Cancel a job. TakenOverError."""
        value = {"reason": escaped(reason, _MAX_REASON_CHARS) or "cancelled"}
        return await self._change(task_id, "cancel", lambda: value)

    async def write_progress(self, task_id: UUID, progress: Progress) -> bool:
        """Write the progress of a job. What it has no more, such as an estimate, is removed."""
        body = {"status": {"progress": progress.model_dump(mode="json")}}
        return await self._put(task_id, partial(self._api.merge, f"{self._of(task_id)}/status", body))

    async def record_reported(self, task_id: UUID) -> bool:
        """Record that the scheduler of a job knows how it ended, or never will."""
        body = {"apiVersion": API_VERSION, "kind": JOB_KIND, "status": reported_status(time.time())}
        return await self._put(task_id, partial(self._api.apply, f"{self._of(task_id)}/status", body))

    async def _change(self, task_id: UUID, field: str, value: Callable[[], Any]) -> bool:
        """Set a field of the specification while this process owns the job. TakenOverError."""
        path = self._of(task_id)

        async def change() -> Object:
            operations = [
                {"op": "test", "path": "/spec/controller", "value": str(self.controller)},
                {"op": "add", "path": f"/spec/{field}", "value": value()},
            ]
            try:
                return await self._api.patch(path, operations)
            except Invalid:
                self._check(task_id, (await self._api.get(path))["spec"].get("controller"))
                raise

        return await self._put(task_id, change)

    def _check(self, task_id: UUID, named: str | None) -> None:
        if named is None:
            raise NodeError("HyphaJobs have no spec.controller here. Upgrade their custom resource definition.")
        if named != str(self.controller):
            raise TakenOverError(task_id)

    async def _put(self, task_id: UUID, write: Callable[[], Awaitable[Object]]) -> bool:
        try:
            await retry_until_done(job_name(task_id), write)
        except NotFound:
            return False
        except Refused as error:
            _rate_limited_log.warning(job_name(task_id), "the API server refused a change of it: %s", error)
        return True

    def _of(self, task_id: UUID) -> str:
        return f"{self._path}/{job_name(task_id)}"
