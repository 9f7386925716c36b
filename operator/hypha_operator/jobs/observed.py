"""A HyphaJob and its objects at one moment. Performs no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.object_status import find_condition
from hypha_operator.pods.state import Finding, has_started, is_over
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker_jobs import Jobs


@dataclass(frozen=True)
class ObservedJob:
    """A HyphaJob and its objects at one moment.

    Attributes:
        hypha_job: the manifest of the HyphaJob.
        spec: its specification.
        now: the time of the observation.
        worker: the manifest of its HyphaWorker, or None if the worker was deleted.
        job: its Job, if there is one.
        pods: the Job's pods, the newest last.
        network_policy: its NetworkPolicy, if there is one.
        lease_lost: whether the controller failed to renew the lease in time.
        lease_left_s: seconds until the operator has to check the lease again.
        invalid: why its Job cannot be created.
        refused: why the API server currently refuses its Job or pod.
        routes: rules of its NetworkPolicy that lead to the configured servers.
        routes_known: whether these rules lead to all of them.
    """

    hypha_job: Manifest
    spec: HyphaJobSpec
    now: datetime
    worker: Manifest | None = None
    job: Manifest | None = None
    pods: Sequence[Manifest] = field(default=())
    network_policy: Manifest | None = None
    lease_lost: bool = False
    lease_left_s: float = 0.0
    invalid: Finding | None = None
    refused: Finding | None = None
    routes: Sequence[Manifest] = ()
    routes_known: bool = True

    @property
    def status(self) -> Mapping[str, Any]:
        """The HyphaJob's current status."""
        return self.hypha_job.get("status") or {}

    @property
    def pod(self) -> Manifest | None:
        """The newest pod."""
        return self.pods[-1] if self.pods else None

    @property
    def job_age(self) -> timedelta:
        """The age of the Job; zero without a Job."""
        return self.now - datetime.fromisoformat(self.job["metadata"]["creationTimestamp"]) if self.job else timedelta()

    @property
    def is_job_deleted(self) -> bool:
        """Whether the Job is being deleted."""
        return self.job is not None and "deletionTimestamp" in self.job["metadata"]

    @property
    def is_job_suspended(self) -> bool:
        """Whether a queue has suspended the Job, so that it creates no pod."""
        return bool(self.job and (self.job.get("spec") or {}).get("suspend"))

    @property
    def has_started(self) -> bool:
        """Whether the executor has started."""
        return "startTime" in self.status or any(map(has_started, self.pods))

    @property
    def has_live_pods(self) -> bool:
        """Whether a container of one of the pods may still run."""
        return not all(is_over(pod, self.now) for pod in self.pods)

    @property
    def admitted_for(self) -> timedelta:
        """How long the Job has been allowed to have a pod: since it was created, or since its queue admitted it."""
        suspended = find_condition(self.job, "Suspended")
        if not suspended:
            return self.job_age
        if suspended["status"] == "True":  # the Job controller has not observed the admission yet
            return timedelta()
        return self.now - datetime.fromisoformat(suspended["lastTransitionTime"])

    @property
    def is_replacement(self) -> bool:
        """Whether the operator created the Job in place of one whose pod the cluster took.

        If a queue admits such a Job and suspends it again, the Job counts as a replacement only if it waited in the
        queue for a shorter time than its predecessors were starting.
        """
        if self.job is None or not {"podUid", "startingSince"} <= self.status.keys():
            return False
        created, since = self.job["metadata"]["creationTimestamp"], self.status["startingSince"]
        return datetime.fromisoformat(created) > datetime.fromisoformat(since)

    @property
    def starting_since(self) -> datetime | None:
        """Since when the job has been starting, or None if it starts now or once its queue admits it.

        If the cluster takes the pod, the time goes on with the replacement Job, because `start_timeout` limits all
        attempts together. The time that a replacement Job waits in a queue does not count. `queue_timeout` limits it.
        If a queue suspends a Job that it had admitted, the job starts afresh once the queue admits it again.
        """
        recorded = self.status.get("startingSince")
        if recorded is None or (self.is_queued and not self.is_replacement):
            return None
        since = datetime.fromisoformat(recorded)
        if self.is_replacement and not self.is_queued and self.status.get("reason") == JobReason.QUEUED:
            return since + (self.job_age - self.admitted_for)  # once, because the next status has another reason
        return since

    @property
    def starting_for(self) -> timedelta:
        """How long the job has been starting, with the pods that the cluster took away and without time in a queue."""
        return self.now - self.starting_since if self.starting_since else timedelta()

    @property
    def is_queued(self) -> bool:
        """Whether a queue holds the Job and the executor has not started.

        Pods that still exist belong to an earlier admission and are being deleted, so they say nothing about the job.
        """
        return self.is_job_suspended and not self.has_started

    @property
    def queued_for(self) -> timedelta:
        """How long the queue has held the Job since it was created, or since it was suspended again."""
        suspended = find_condition(self.job, "Suspended")
        if suspended.get("status") != "True":
            return self.job_age
        return self.now - datetime.fromisoformat(suspended["lastTransitionTime"])

    @property
    def start_patience(self) -> timedelta:
        """How long the job may stay blocked before the operator ends it."""
        return timedelta(seconds=self._jobs.start_patience_seconds)

    @property
    def start_timeout(self) -> timedelta:
        """How long the job may take to start before the operator ends it."""
        return timedelta(seconds=self._jobs.start_timeout_seconds)

    @property
    def queue_timeout(self) -> timedelta:
        """How long a queue may hold the job before the operator ends it."""
        return timedelta(seconds=self._jobs.queue_timeout_seconds)

    @cached_property
    def _jobs(self) -> Jobs:
        return jobs_of(self.worker)


def jobs_of(worker: Manifest | None) -> Jobs:
    """Return a worker's settings of jobs; the defaults without a worker, or if they are invalid."""
    try:
        return Jobs.model_validate((worker or {}).get("spec", {}).get("jobs") or {})
    except ValidationError:
        return Jobs()
