"""Decide what to do about a HyphaJob from everything observed about it. Performs no I/O."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.limits import MAX_ENDED, MAX_ENDED_PER_SCHEDULER
from hypha_contracts.names import BRIDGE
from hypha_contracts.object_status import REPORTED, TERMINAL, is_true
from hypha_operator.jobs.children import job_children, network_policy
from hypha_operator.jobs.observed import ObservedJob, jobs_of
from hypha_operator.jobs.phase import FIELDS, POD_TIMEOUT, State, classify, status_of
from hypha_operator.machinery.conditions import differs
from hypha_operator.machinery.drift import is_applied, marked
from hypha_operator.pods.refusal import UNBUILDABLE, why_unbuildable
from hypha_operator.pods.state import Finding, container_state
from hypha_operator.settings import Settings
from hypha_resources.worker import HyphaWorkerSpec

_UNREPORTED_RETENTION: Final = timedelta(days=1)
"""How much longer the operator keeps a job whose controller has not reported its end."""
_BLOCKED_S: Final = 10.0
"""Seconds between reconciles of a job that is blocked or ending."""
_STARTING_S: Final = 30.0
_WITHOUT_EVENT: Final = frozenset({JobReason.POD_PENDING, JobReason.POD_STARTS, JobReason.DELIVERING_RESULTS})
_BEGINNING: Final = frozenset({JobReason.POD_PENDING, JobReason.POD_STARTS})
UNREPORTED: Final = timedelta(seconds=5)
"""How long the status does not mention that a job waits for its pod or that the pod starts. Most pods run by then."""


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event to post about a HyphaJob."""

    type: Literal["Normal", "Warning"]
    reason: JobReason
    message: str


@dataclass(frozen=True)
class Decision:
    """What to do about a HyphaJob, besides creating what it lacks.

    Attributes:
        state: the job's state.
        end_job: the Job to delete after the status with the reason is written.
        replace_job: the Job to delete before the status is written. A later decision creates it again.
        status: the status to write, or None if it has not changed.
        event: the Event to post.
        next_s: seconds until the next reconcile.
    """

    state: State
    end_job: Manifest | None
    replace_job: Manifest | None
    status: dict[str, Any] | None
    event: Event | None
    next_s: float


@dataclass(frozen=True)
class Missing:
    """What a HyphaJob lacks.

    Attributes:
        children: objects to apply, in this order, before the Job.
        job: the Job to create.
        invalid: why they cannot be built.
    """

    children: tuple[Manifest, ...] = ()
    job: Manifest | None = None
    invalid: Finding | None = None


def missing(observed: ObservedJob, settings: Settings) -> Missing:
    """Return what a HyphaJob that has not ended lacks."""
    state = classify(observed)
    if observed.worker is None or state.terminal or state.ending or (observed.job is None and observed.has_live_pods):
        return Missing()
    try:
        return _missing(observed, HyphaWorkerSpec.model_validate(observed.worker["spec"]), settings)
    except UNBUILDABLE as error:
        if observed.job:
            return Missing()  # it goes on as it was created
        return Missing(invalid=Finding(JobReason.INVALID_TEMPLATE, why_unbuildable(error)))


def _missing(observed: ObservedJob, worker: HyphaWorkerSpec, settings: Settings) -> Missing:
    """Return what is missing. If the Job exists, only restore the NetworkPolicy."""
    claims: list[Manifest] = []
    job = None
    if observed.job is None:
        policy, *claims, job = job_children(observed.hypha_job, observed.spec, worker, settings, observed.routes)
    else:
        policy = network_policy(observed.hypha_job, observed.spec, worker, observed.routes)
    policy = marked(policy)
    uncertain = observed.network_policy is not None and not observed.routes_known
    return Missing((*([] if uncertain or is_applied(observed.network_policy, policy) else [policy]), *claims), job)


def decide(observed: ObservedJob) -> Decision:
    """Return what to do about a HyphaJob whose recorded phase is not terminal."""
    state = classify(observed)
    status = status_of(observed, state)
    postponed_s = _postponed_s(observed, state)
    changed = not postponed_s and differs(observed.hypha_job, status, FIELDS)
    return Decision(
        state,
        end_job=observed.job if state.ending and not observed.is_job_deleted else None,
        replace_job=observed.job if state.replaced_in == timedelta() and not observed.is_job_deleted else None,
        status=status if changed else None,
        event=_event(observed, state) if changed else None,
        next_s=postponed_s or _next_s(observed, state),
    )


def retention_left(hypha_job: Manifest, now: datetime) -> timedelta:
    """Return how much longer to keep a HyphaJob that has ended."""
    kept = timedelta(seconds=hypha_job["spec"].get("ttlSecondsAfterFinished", 0))
    return _ended_at(hypha_job) + kept + (timedelta(0) if is_true(hypha_job, REPORTED) else _UNREPORTED_RETENTION) - now


def surplus(hypha_jobs: Iterable[Manifest]) -> list[Manifest]:
    """Return those ended HyphaJobs of a worker that the operator deletes, so that schedulers cannot fill etcd.

    It keeps the newest ones. A job whose scheduler does not know of its end counts as running.
    """
    ended = [job for job in hypha_jobs if job.get("status", {}).get("phase") in TERMINAL and is_true(job, REPORTED)]
    kept: Counter[str] = Counter()
    found = []
    for job in sorted(ended, key=_ended_at, reverse=True):
        scheduler = job["spec"]["scheduler"]
        if kept[scheduler] >= MAX_ENDED_PER_SCHEDULER or kept.total() >= MAX_ENDED:
            found.append(job)
        else:
            kept[scheduler] += 1
    return found


def pod_retention_left(hypha_job: Manifest, worker: Manifest | None, now: datetime) -> timedelta:
    """Return how much longer to keep the pod of a HyphaJob that has ended."""
    kept = timedelta(seconds=jobs_of(worker).pod_ttl_seconds_after_finished)
    return _ended_at(hypha_job) + kept - now


def _ended_at(hypha_job: Manifest) -> datetime:
    return datetime.fromisoformat(
        hypha_job["status"].get("completionTime") or hypha_job["metadata"]["creationTimestamp"]
    )


def _postponed_s(observed: ObservedJob, state: State) -> float:
    """Return the seconds after which to write the status; 0 to write it now.

    A status that only mentions a wait which has just begun is postponed, so that a job whose pod runs at once gets one
    status in place of three. Each of them costs the API server more than the job's NetworkPolicy. Once the bridge runs,
    the status names the pod at once, because the node serves no other bridge.
    """
    stalled = is_true(observed.hypha_job, "Stalled")
    if stalled or state.ending or state.finding.reason not in _BEGINNING or observed.job is None:
        return 0.0
    if observed.pod and container_state(observed.pod, BRIDGE, "running"):
        return 0.0
    waits_for = (observed.pod or observed.job)["metadata"]
    age = observed.now - datetime.fromisoformat(waits_for["creationTimestamp"])
    return (UNREPORTED - age).total_seconds() if abs(age) < UNREPORTED else 0.0  # negative if the clocks differ


def _event(observed: ObservedJob, state: State) -> Event | None:
    reason, before = state.finding.reason, observed.status
    if (reason, state.phase) == (before.get("reason"), before.get("phase")) or reason in _WITHOUT_EVENT:
        return None
    if reason == JobReason.EXECUTOR_RUNS and "phase" not in before:
        return None  # its pod ran at once, which the Events of the pod show
    warns = state.stalled or state.ending or state.replaced_in is not None or state.phase == "Failed"
    warns = warns and reason != JobReason.CANCELLED
    return Event("Warning" if warns else "Normal", reason, state.finding.message)


def _next_s(observed: ObservedJob, state: State) -> float:
    if state.terminal:
        return 0.0  # schedules the removal
    if state.ending or state.stalled:
        return _BLOCKED_S
    if state.replaced_in is not None:
        return state.replaced_in.total_seconds() or _BLOCKED_S
    delays = [observed.lease_left_s]
    if observed.is_queued:
        delays.append((observed.queue_timeout - observed.queued_for).total_seconds())
    if state.phase == "Starting":
        delays.append(_STARTING_S)
    if state.finding.reason == JobReason.POD_PENDING and observed.job and not observed.pods:
        delays.append(max(POD_TIMEOUT, observed.job_age).total_seconds())  # query its Events less often as it ages
    return min(delays)
