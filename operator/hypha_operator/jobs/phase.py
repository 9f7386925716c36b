"""Derive a HyphaJob's phase, conditions and status from everything observed about it. Performs no I/O.

The rule for restarts: until its executor has started, a job has lost nothing. So if the cluster takes its pod (rejects,
evicts, preempts or deletes it, or loses its node), the operator creates another one, as long as the start timeout
permits. This timeout limits all attempts together, without their time in a queue. A queue that suspends the Job admits
it again. Once the executor has started, the job fails with that reason, and also if its bridge is restarted.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.durations import short_duration
from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.names import EXECUTOR, controller_name
from hypha_contracts.object_status import TERMINAL, find_condition, is_true
from hypha_operator.jobs.observed import ObservedJob
from hypha_operator.machinery.conditions import Condition, merged, timestamp
from hypha_operator.pods.stages import stages_of
from hypha_operator.pods.state import (
    Finding,
    bridge_restart,
    container_state,
    end_of_bridge,
    end_of_job,
    end_of_pod,
    has_started,
    lingering_container,
    obstacle_of,
    started_at,
)
from hypha_resources.job import Phase

_TAKEN: Final = frozenset(
    {
        JobReason.UNSCHEDULABLE,  # of a pod that has ended: its node rejected it
        JobReason.EVICTED,
        JobReason.PREEMPTED,
        JobReason.NODE_LOST,
        JobReason.JOB_DELETED,
    }
)
"""How a pod ends if the cluster takes it away."""
_SHORTEST_LIFE: Final = timedelta(seconds=10)
_LIFE_FACTOR: Final = 4
"""A node may reject each pod at once, so an attempt lasts at least 10 s, and a quarter of the time of all attempts."""
POD_TIMEOUT: Final = timedelta(seconds=10)
"""How long a Job may have no pod before the operator reads the Job's Events to find out why."""
FIELDS: Final = (
    "phase",
    "reason",
    "podName",
    "podUid",
    "nodeName",
    "startingSince",
    "startTime",
    "completionTime",
    "duration",
    "lastLines",
    "stages",
)
"""Fields of the status, besides conditions, that the operator writes. The node writes the others."""


@dataclass(frozen=True)
class State:
    """The state of a HyphaJob.

    Attributes:
        phase: Pending, Starting, Running, Succeeded or Failed.
        finding: the reason for the phase.
        stalled: whether an obstacle blocks the job. The operator ends a job that stays blocked.
        ending: whether its Job has to be deleted.
        replaced_in: time until its Job is deleted and created again, because the cluster took its pod. None: it stays.
    """

    phase: Phase
    finding: Finding
    stalled: bool = False
    ending: bool = False
    replaced_in: timedelta | None = None

    @property
    def terminal(self) -> bool:
        """Whether the job has ended and none of its processes runs."""
        return self.phase in TERMINAL


def classify(observed: ObservedJob) -> State:
    """Return the state of a HyphaJob whose recorded phase is not terminal."""
    if observed.is_queued:
        observed = replace(observed, pods=())
    phase, recorded, end = _phase(observed), _recorded_stop_reason(observed), _end(observed)
    if recorded and recorded.reason == JobReason.DELIVERING_RESULTS:
        return _ended_by_operator(observed, phase, recorded)
    stop_reason = recorded or _stop_reason(observed)
    if end and not stop_reason and _may_replace(observed, end):
        return _replaced(observed, end)
    if end and not recorded and not observed.has_live_pods:
        return State("Succeeded" if end.reason == JobReason.COMPLETED else "Failed", end)
    if stop_reason:
        return _stopped(stop_reason, observed, phase)
    return _queued(observed) if observed.is_queued else _ongoing(observed, phase, end)


def _ongoing(observed: ObservedJob, phase: Phase, end: Finding | None) -> State:
    """Return the state of a job that may continue, and whose executor may have ended."""
    lingers = lingering_container(observed.pod) if observed.pod else None
    if end or lingers:  # if the pod is being deleted, record the end now, because the pod's status disappears with it
        message = f"The executor has ended. The operator ends the pod, in which container {lingers} still runs."
        deleted = any("deletionTimestamp" in pod["metadata"] for pod in observed.pods)
        finding = end or Finding(JobReason.DELIVERING_RESULTS, message)
        return State(phase, finding, ending=deleted or lingers is not None)
    obstacle = obstacle_of(observed.pod, observed.now) if observed.pod else observed.refused
    since = _stalled_since(observed)
    if obstacle and since is not None and observed.now - since >= observed.start_patience:
        return _stopped(obstacle, observed, phase)
    if not observed.has_started and observed.starting_for >= observed.start_timeout:
        return _stopped(obstacle or _too_slow(observed), observed, phase)
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
    start_time = (_start_of(pod) if pod else None) or before.get("startTime")
    since = observed.starting_since or (None if observed.is_queued else observed.now)
    status = {
        "phase": state.phase,
        "reason": state.finding.reason,
        "conditions": merged(observed.hypha_job, _conditions(state), None, observed.now),
        "podName": pod["metadata"]["name"] if pod else before.get("podName"),
        "podUid": pod["metadata"]["uid"] if pod else before.get("podUid"),
        "nodeName": ((pod.get("spec") or {}).get("nodeName") if pod else None) or before.get("nodeName"),
        "startingSince": timestamp(since) if since else None,
        "startTime": start_time,
        "completionTime": timestamp(observed.now) if state.terminal else None,
        "duration": _duration(start_time, observed.now) if state.terminal and start_time else None,
        "lastLines": list(state.finding.last_lines) or None,
        "stages": (stages_of(pod) if pod else None) or before.get("stages"),
    }
    return {name: value for name, value in status.items() if value is not None}


def _start_of(pod: Manifest) -> str | None:
    """Return when a pod's executor started, or about when if the node lost track of it."""
    if not has_started(pod):
        return None
    return started_at(pod, EXECUTOR) or str(pod["metadata"]["creationTimestamp"])


def _duration(start_time: str, end: datetime) -> str:
    return short_duration((end - datetime.fromisoformat(start_time)).total_seconds())


def _conditions(state: State) -> list[Condition]:
    reason, message = state.finding.reason, state.finding.message
    if state.terminal:
        succeeded = state.phase == "Succeeded"
        return [
            Condition("Complete" if succeeded else "Failed", True, reason, message),
            Condition("Ready", succeeded, reason, message),
            Condition("Reconciling", False, JobReason.ENDED),
            Condition("Stalled", not succeeded, reason, "" if succeeded else message),
        ]
    runs = reason == JobReason.EXECUTOR_RUNS
    return [
        Condition("Ready", runs, reason, message),
        Condition("Reconciling", not runs, _progress_reason(state)),
        Condition("Stalled", state.stalled, reason, message if state.stalled else ""),
    ]


def _progress_reason(state: State) -> JobReason:
    if state.ending:
        return JobReason.ENDING
    return state.finding.reason if state.replaced_in is None else JobReason.REPLACING


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
    """Return why a Job that had a pod cannot finish: it was deleted or suspended, or lost files with its bridge."""
    if observed.has_started and (observed.job is None or observed.is_job_deleted):
        return Finding(JobReason.JOB_DELETED, f"another client deleted the job's Job. {JobReason.JOB_DELETED.remedy}")
    if observed.is_job_suspended and not observed.is_queued:
        return Finding(JobReason.PREEMPTED, "the queue suspended the job's Job to free capacity for another job")
    return bridge_restart(observed.pod) if observed.pod else None


def _ended_by_operator(observed: ObservedJob, phase: Phase, recorded: Finding) -> State:
    """Return the state of a job whose pod the operator ends because its executor has succeeded."""
    end = end_of_bridge(observed.pod) if observed.pod else None
    if end is None and not observed.has_live_pods:
        message = f"the bridge ended unobserved, so results may be lost. {JobReason.RESULTS_UNDELIVERED.remedy}"
        end = Finding(JobReason.RESULTS_UNDELIVERED, message)
    return _stopped(end, observed, phase) if end else State(phase, recorded, ending=True)


def _queued(observed: ObservedJob) -> State:
    """Return the state of a job whose executor has not started and that a queue holds, for the first time or again."""
    if observed.queued_for >= observed.queue_timeout:
        message = (
            f"the queue has not admitted the job within {observed.queue_timeout.total_seconds():g} s. "
            f"{JobReason.QUEUE_TIMEOUT.remedy}"
        )
        return _stopped(Finding(JobReason.QUEUE_TIMEOUT, message), observed, "Pending")
    message = "The job's Job is suspended until the queue admits it."
    if "podUid" in observed.status and not observed.is_replacement:
        message = f"The queue suspended the job's Job again before its executor started. {message}"
    return State("Pending", Finding(JobReason.QUEUED, message))


def _may_replace(observed: ObservedJob, end: Finding) -> bool:
    """Whether the job gets another pod after its pod ended in this way. This is the rule for restarts.

    If the operator has not observed the end of the pod, the executor may have started, so the job gets none.
    """
    in_time = observed.starting_for < observed.start_timeout
    return bool(observed.pods) and end.reason in _TAKEN and not observed.has_started and in_time


def _replaced(observed: ObservedJob, end: Finding) -> State:
    """Return the state of a job whose pod the cluster took. A pod that is being deleted is replaced at once."""
    message = f"{end.message} The executor had not started, so the operator creates another pod."
    leaves = any("deletionTimestamp" in pod["metadata"] for pod in observed.pods)
    life = timedelta() if leaves else max(_SHORTEST_LIFE, observed.starting_for / _LIFE_FACTOR)
    return State("Pending", Finding(end.reason, message), replaced_in=max(life - observed.admitted_for, timedelta()))


def _too_slow(observed: ObservedJob) -> Finding:
    waits = "its images are pulled" if observed.pod else "the cluster creates its pod"
    message = f"the executor has not started within {observed.start_timeout.total_seconds():g} s, in which {waits}"
    return Finding(JobReason.START_TIMEOUT, f"{message}. {JobReason.START_TIMEOUT.remedy}")


def _stopped(stop_reason: Finding, observed: ObservedJob, phase: Phase) -> State:
    job = observed.job
    no_more_pods = job is None or is_true(job, "Complete") or is_true(job, "Failed")
    if not no_more_pods and observed.is_job_deleted:
        no_more_pods = bool(observed.pods)  # a Job that is being deleted waits for its pod, even on a lost node
    if no_more_pods and not observed.has_live_pods:
        return State("Succeeded" if stop_reason.reason == JobReason.COMPLETED else "Failed", stop_reason)
    return State(phase, stop_reason, ending=True)


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
    return "Running" if has_started(observed.pod) else "Starting"


def _progress(observed: ObservedJob, phase: Phase) -> Finding:
    if phase == "Running":
        if observed.pod and container_state(observed.pod, EXECUTOR, "terminated"):
            return Finding(JobReason.DELIVERING_RESULTS, "The executor has ended. The bridge still sends results.")
        return Finding(JobReason.EXECUTOR_RUNS, "The executor runs.")
    if phase == "Starting":
        return Finding(JobReason.POD_STARTS, "The node pulls images and starts the bridge.")
    return Finding(
        JobReason.POD_PENDING, "The job's pod waits for a node." if observed.pod else "The cluster creates its pod."
    )
