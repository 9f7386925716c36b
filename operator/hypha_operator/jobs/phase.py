"""Derive a HyphaJob's phase, conditions and status from everything observed about it. Performs no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import ValidationError

from hypha_contracts.names import EXECUTOR, controller_name
from hypha_contracts.reasons import JobReason
from hypha_operator.machinery.conditions import Condition, find_condition, is_true, merged, timestamp
from hypha_operator.machinery.kinds import Manifest
from hypha_operator.pods.state import Finding, container_state, end_of_job, end_of_pod, is_over, obstacle_of
from hypha_resources.job import TERMINAL, HyphaJobSpec, Phase
from hypha_resources.worker import Jobs

POD_TIMEOUT: Final = timedelta(seconds=10)
"""How long a Job may have no pod before the operator reads the Job's Events to find out why."""
FIELDS: Final = ("phase", "reason", "podName", "podUid", "nodeName", "startTime", "completionTime", "lastLines")
"""Fields of the status, besides conditions, that the operator writes. The node writes the others."""


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
    def start_timeout(self) -> timedelta:
        """How long the job may stay blocked before the operator ends it; the default if the worker is invalid."""
        try:
            jobs = Jobs.model_validate((self.worker or {}).get("spec", {}).get("jobs") or {})
        except ValidationError:
            jobs = Jobs()
        return timedelta(seconds=jobs.start_patience_seconds)


@dataclass(frozen=True)
class State:
    """The state of a HyphaJob.

    Attributes:
        phase: Pending, Starting, Running, Succeeded or Failed.
        finding: the reason for the phase.
        stalled: whether an obstacle blocks the job. The operator ends a job that stays blocked.
        ending: whether its Job has to be deleted.
    """

    phase: Phase
    finding: Finding
    stalled: bool = False
    ending: bool = False

    @property
    def terminal(self) -> bool:
        """Whether the job has ended and none of its processes runs."""
        return self.phase in TERMINAL


def classify(observed: ObservedJob) -> State:
    """Return the state of a HyphaJob whose recorded phase is not terminal."""
    phase, recorded, end = _phase(observed), _recorded_stop_reason(observed), _end(observed)
    if end and not recorded and _is_over(observed):
        return State("Succeeded" if end.reason == JobReason.COMPLETED else "Failed", end)
    if stop_reason := recorded or _stop_reason(observed):
        return _stopped(stop_reason, observed, phase)
    if end:  # if the pod is being deleted, record the end now, because the pod's status disappears with it
        return State(phase, end, ending=any("deletionTimestamp" in pod["metadata"] for pod in observed.pods))
    obstacle = obstacle_of(observed.pod, observed.now) if observed.pod else observed.refused
    since = _stalled_since(observed)
    if obstacle and since is not None and observed.now - since >= observed.start_timeout:
        return _stopped(obstacle, observed, phase)
    return State(phase, obstacle or _progress(observed, phase), stalled=obstacle is not None)


def lacks_pod(observed: ObservedJob) -> bool:
    """Whether the HyphaJob's Job should have created a pod by now."""
    if observed.job is None or observed.pods or observed.is_job_suspended or observed.job_age < POD_TIMEOUT:
        return False
    state = classify(observed)
    return not (state.terminal or state.ending)


def status_of(observed: ObservedJob, state: State) -> dict[str, Any]:
    """Return the fields of the status that the operator writes.

    There is no observed generation. Each renewal of the lease makes a new generation, so a client that waits until the
    observed generation is current would wait forever.
    """
    before, pod = observed.status, observed.pod
    running = container_state(pod, EXECUTOR, "running") if pod else None
    ended = container_state(pod, EXECUTOR, "terminated") if pod else None
    status = {
        "phase": state.phase,
        "reason": state.finding.reason,
        "conditions": merged(observed.hypha_job, _conditions(state), None, observed.now),
        "podName": pod["metadata"]["name"] if pod else before.get("podName"),
        "podUid": pod["metadata"]["uid"] if pod else before.get("podUid"),
        "nodeName": ((pod.get("spec") or {}).get("nodeName") if pod else None) or before.get("nodeName"),
        "startTime": (running or ended or {}).get("startedAt") or before.get("startTime"),
        "completionTime": timestamp(observed.now) if state.terminal else None,
        "lastLines": list(state.finding.last_lines) or None,
    }
    return {name: value for name, value in status.items() if value is not None}


def _conditions(state: State) -> list[Condition]:
    reason, message = state.finding.reason, state.finding.message
    if state.terminal:
        succeeded = state.phase == "Succeeded"
        return [
            Condition("Ready", succeeded, reason, message),
            Condition("Reconciling", False, JobReason.ENDED),
            Condition("Stalled", not succeeded, reason, "" if succeeded else message),
        ]
    runs = reason == JobReason.EXECUTOR_RUNS
    return [
        Condition("Ready", runs, reason, message),
        Condition("Reconciling", not runs, JobReason.ENDING if state.ending else reason),
        Condition("Stalled", state.stalled, reason, message if state.stalled else ""),
    ]


def _recorded_stop_reason(observed: ObservedJob) -> Finding | None:
    """Return the stop reason that an earlier reconcile recorded. It stays valid whatever the cluster shows later."""
    ready = find_condition(observed.hypha_job, "Ready")
    if find_condition(observed.hypha_job, "Reconciling").get("reason") != JobReason.ENDING or not ready:
        return None
    return Finding(ready["reason"], ready.get("message", ""), tuple(observed.status.get("lastLines") or ()))


def _stop_reason(observed: ObservedJob) -> Finding | None:
    """Return why the job must not continue."""
    spec, namespace = observed.spec, observed.hypha_job["metadata"]["namespace"]
    if observed.worker is None:
        return Finding(JobReason.WORKER_GONE, f"the job's HyphaWorker {spec.worker_ref.name} was deleted")
    if observed.lease_lost:
        return Finding(
            JobReason.LEASE_LOST,
            f"the controller did not renew the lease, which expired at {spec.lease.deadline:%H:%M:%S} UTC. "
            f"See kubectl logs -n {namespace} "
            f"deploy/{controller_name(spec.worker_ref.name)}",
        )
    if observed.invalid:
        return observed.invalid
    return Finding(JobReason.CANCELLED, spec.cancel.reason) if spec.cancel else _lost_job(observed)


def _lost_job(observed: ObservedJob) -> Finding | None:
    """Return why a Job that had a pod cannot finish: another client deleted or suspended the Job."""
    had_pod = "podUid" in observed.status
    if had_pod and (observed.job is None or observed.is_job_deleted):
        return Finding(JobReason.JOB_DELETED, f"another client deleted the job's Job. {JobReason.JOB_DELETED.remedy}")
    if had_pod and observed.is_job_suspended:
        return Finding(JobReason.PREEMPTED, "the queue suspended the job's Job to free capacity for another job")
    return None


def _stopped(stop_reason: Finding, observed: ObservedJob, phase: Phase) -> State:
    job = observed.job
    no_more_pods = job is None or is_true(job, "Complete") or is_true(job, "Failed")
    if not no_more_pods and observed.is_job_deleted:
        no_more_pods = bool(observed.pods)  # a Job that is being deleted waits for its pod, even on a lost node
    if no_more_pods and _is_over(observed):
        return State("Failed", stop_reason)
    return State(phase, stop_reason, ending=True)


def _is_over(observed: ObservedJob) -> bool:
    return all(is_over(pod, observed.now) for pod in observed.pods)


def _end(observed: ObservedJob) -> Finding | None:
    """Return how the job ended by itself, or because the cluster ended its pod."""
    if observed.pod:
        return end_of_pod(observed.pod, observed.spec.resources.memory, observed.spec.resources.storage)
    return end_of_job(observed.job) if observed.job else None


def _stalled_since(observed: ObservedJob) -> datetime | None:
    stalled = find_condition(observed.hypha_job, "Stalled")
    return datetime.fromisoformat(stalled["lastTransitionTime"]) if stalled.get("status") == "True" else None


def _phase(observed: ObservedJob) -> Phase:
    if observed.pod is None or not (observed.pod.get("spec") or {}).get("nodeName"):
        return "Pending"
    started = any(container_state(observed.pod, EXECUTOR, state) for state in ("running", "terminated"))
    return "Running" if started else "Starting"


def _progress(observed: ObservedJob, phase: Phase) -> Finding:
    if phase == "Running":
        if observed.pod and container_state(observed.pod, EXECUTOR, "terminated"):
            return Finding(JobReason.DELIVERING_RESULTS, "The executor has ended. The bridge still sends results.")
        return Finding(JobReason.EXECUTOR_RUNS, "The executor runs.")
    if phase == "Starting":
        return Finding(JobReason.POD_STARTS, "The node pulls images and starts the bridge.")
    if observed.is_job_suspended:
        return Finding(JobReason.QUEUED, "The job's Job is suspended until the queue admits it.")
    return Finding(
        JobReason.POD_PENDING, "The job's pod waits for a node." if observed.pod else "The cluster creates its pod."
    )
