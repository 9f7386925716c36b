"""What is the matter with a HyphaJob: all that was observed, classified once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.names import EXECUTOR
from hypha_operator.machinery.conditions import Condition, merged, timestamp
from hypha_operator.machinery.kinds import Manifest
from hypha_operator.pods.state import (
    Finding,
    condition,
    container_state,
    end_of_job,
    end_of_pod,
    is_over,
    trouble_of,
)
from hypha_resources.job import TERMINAL, HyphaJobSpec, Phase
from hypha_resources.worker import Jobs

ENDING: Final = "Ending"
"""The reason of Reconciling while a job is being ended; that of Ready says why."""
_WELL: Final = "Completed"
_RUNS: Final = "ExecutorRuns"
_OURS: Final = frozenset(
    {"phase", "reason", "podName", "podUid", "nodeName", "startTime", "completionTime", "lastLines"}
)
_CONDITIONS: Final = frozenset({"Ready", "Reconciling", "Stalled"})


@dataclass(frozen=True)
class Observed:
    """A HyphaJob and what belongs to it at one moment.

    Attributes:
        hypha_job: its manifest.
        spec: its specification.
        job: its Job, if there is one.
        pods: its pods, the newest last.
        order: why it must not go on, apart from what its own specification says.
        refused: what the API server says of objects or pods that it does not take.
        patience: how long it may be kept from running before it is given up.
    """

    hypha_job: Manifest
    spec: HyphaJobSpec
    now: datetime
    job: Manifest | None = None
    pods: Sequence[Manifest] = field(default=())
    order: Finding | None = None
    refused: Finding | None = None
    patience: timedelta = timedelta(seconds=Jobs().start_patience_seconds)

    @property
    def status(self) -> Mapping[str, Any]:
        """What the HyphaJob's status says now."""
        return self.hypha_job.get("status") or {}

    @property
    def pod(self) -> Manifest | None:
        """The pod that counts."""
        return self.pods[-1] if self.pods else None


@dataclass(frozen=True)
class State:
    """What a HyphaJob is, and what is to be done.

    Attributes:
        phase: Pending, Starting, Running, Succeeded or Failed.
        finding: why it is so.
        stalled: it is kept from running, and given up if that lasts.
        to_end: its Job is to be deleted.
    """

    phase: Phase
    finding: Finding
    stalled: bool = False
    to_end: bool = False

    @property
    def terminal(self) -> bool:
        """Whether it has ended and nothing of it runs."""
        return self.phase in TERMINAL


def classify(seen: Observed) -> State:
    """Return what a HyphaJob that is not terminal has become."""
    phase, recorded, end = _phase(seen), _recorded_order(seen), _end(seen)
    if end and not recorded and _is_over(seen):
        return State("Succeeded" if end.reason == _WELL else "Failed", end)
    if order := recorded or seen.order or _order(seen):
        return _ended_by(order, seen, phase)
    if end:  # a pod that is being deleted takes what it shows along: to be recorded, as an order is
        return State(phase, end, to_end=any("deletionTimestamp" in pod["metadata"] for pod in seen.pods))
    trouble = trouble_of(seen.pod, seen.now) if seen.pod else seen.refused
    since = _stalled_since(seen)
    if trouble and since is not None and seen.now - since >= seen.patience:
        return _ended_by(trouble, seen, phase)
    return State(phase, trouble or _progress(seen, phase), stalled=trouble is not None)


def status_of(seen: Observed, state: State) -> dict[str, Any]:
    """Return the status to write: all fields that are the operator's.

    It names no observed generation: each renewal of the lease makes one, and whoever waits for a status that has caught
    up would wait for ever.
    """
    before, pod = seen.status, seen.pod
    running = container_state(pod, EXECUTOR, "running") if pod else None
    ended = container_state(pod, EXECUTOR, "terminated") if pod else None
    status = {
        "phase": state.phase,
        "reason": state.finding.reason,
        "conditions": merged(before.get("conditions") or [], _conditions(state), None, seen.now),
        "podName": pod["metadata"]["name"] if pod else before.get("podName"),
        "podUid": pod["metadata"]["uid"] if pod else before.get("podUid"),
        "nodeName": ((pod.get("spec") or {}).get("nodeName") if pod else None) or before.get("nodeName"),
        "startTime": (running or ended or {}).get("startedAt") or before.get("startTime"),
        "completionTime": timestamp(seen.now) if state.terminal else None,
        "lastLines": list(state.finding.last_lines) or None,
    }
    return {name: value for name, value in status.items() if value is not None}


def differs(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a status says something else now."""
    return _said(before) != _said(after)


def _said(status: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in status.items() if name in _OURS}
    said["conditions"] = {
        found["type"]: (found["status"], found["reason"], found.get("message", ""))
        for found in status.get("conditions") or ()
        if found["type"] in _CONDITIONS
    }
    return said


def _conditions(state: State) -> list[Condition]:
    reason, message = state.finding.reason, state.finding.message
    if state.terminal:
        well = state.phase == "Succeeded"
        return [
            Condition("Ready", well, reason, message),
            Condition("Reconciling", False, "Ended"),
            Condition("Stalled", not well, reason, "" if well else message),
        ]
    return [
        Condition("Ready", reason == _RUNS, reason, message),
        Condition("Reconciling", reason != _RUNS, ENDING if state.to_end else reason),
        Condition("Stalled", state.stalled, reason, message if state.stalled else ""),
    ]


def _recorded_order(seen: Observed) -> Finding | None:
    """What an earlier look decided: it stays so, whatever the cluster shows by now."""
    known = {found["type"]: found for found in seen.status.get("conditions") or ()}
    if known.get("Reconciling", {}).get("reason") != ENDING or "Ready" not in known:
        return None
    lines = tuple(seen.status.get("lastLines") or ())
    return Finding(known["Ready"]["reason"], known["Ready"].get("message", ""), lines)


def _order(seen: Observed) -> Finding | None:
    if seen.spec.cancel:
        return Finding("Cancelled", seen.spec.cancel.reason)
    had_pod = "podUid" in seen.status
    if had_pod and (seen.job is None or "deletionTimestamp" in seen.job["metadata"]):
        return Finding("JobDeleted", "somebody deleted its Job; set spec.cancel of the HyphaJob instead")
    if had_pod and seen.job and (seen.job.get("spec") or {}).get("suspend"):
        return Finding("Preempted", "its Job was suspended: the queue gave its place to another")
    return None


def _ended_by(order: Finding, seen: Observed, phase: Phase) -> State:
    job = seen.job
    no_more_pods = job is None or bool(condition(job, "Complete") or condition(job, "Failed"))
    if not no_more_pods and job and "deletionTimestamp" in job["metadata"]:
        no_more_pods = bool(seen.pods)  # a Job that is being deleted waits for its pod, also for one that is lost
    if no_more_pods and _is_over(seen):
        return State("Failed", order)
    return State(phase, order, to_end=True)


def _is_over(seen: Observed) -> bool:
    return all(is_over(pod, seen.now) for pod in seen.pods)


def _end(seen: Observed) -> Finding | None:
    """How it ended by itself, or by what the cluster did to its pod."""
    if seen.pod:
        return end_of_pod(seen.pod, seen.spec.resources.memory, seen.spec.resources.storage)
    return end_of_job(seen.job) if seen.job else None


def _stalled_since(seen: Observed) -> datetime | None:
    known = (found for found in seen.status.get("conditions") or () if found["type"] == "Stalled")
    return next((datetime.fromisoformat(c["lastTransitionTime"]) for c in known if c["status"] == "True"), None)


def _phase(seen: Observed) -> Phase:
    if seen.pod is None or not (seen.pod.get("spec") or {}).get("nodeName"):
        return "Pending"
    started = any(container_state(seen.pod, EXECUTOR, state) for state in ("running", "terminated"))
    return "Running" if started else "Starting"


def _progress(seen: Observed, phase: Phase) -> Finding:
    if phase == "Running":
        if seen.pod and container_state(seen.pod, EXECUTOR, "terminated"):
            return Finding("DeliveringResults", "The executor has ended; the bridge still sends results.")
        return Finding(_RUNS, "The executor runs.")
    if phase == "Starting":
        return Finding("PodStarts", "Images are pulled and the bridge starts.")
    if seen.job and (seen.job.get("spec") or {}).get("suspend"):
        return Finding("Queued", "Its Job is suspended until the queue admits it.")
    return Finding("PodPending", "Its pod waits for a node." if seen.pod else "Its pod is being made.")
