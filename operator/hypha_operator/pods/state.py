"""What the pods of a job, and the Job itself, say became of it: read as the kubelet and the controllers write it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.names import BRIDGE, EXECUTOR
from hypha_operator.machinery.kinds import Manifest

_SILENT: Final = timedelta(seconds=60)
"""How long after its end was due a pod is taken to run on a node that is not heard of."""
_PREPARING: Final = timedelta(seconds=60)
"""How long a pod's volumes and network may take."""
_MOST_LINES: Final = 20
_IMAGE: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_NOT_STARTED: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_NO_PROGRAM: Final = frozenset({"StartError", "ContainerCannotRun"})
_OWN_STORAGE: Final = re.compile("exceeds the limit|exceeded its local ephemeral storage|exceeds the total limit")
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": ("Preempted", "a pod of higher priority took its place; raise priorityClassName"),
    "DeletionByTaintManager": ("NodeLost", "its node is not heard of, or does not tolerate it any more"),
    "DeletionByPodGC": ("NodeLost", "its node is gone"),
    "EvictionByEvictionAPI": ("Evicted", "its node was drained, or somebody evicted the pod"),
    "TerminationByKubelet": ("Evicted", "its node was short of resources or shut down"),
}
"""By the reason of a pod's condition DisruptionTarget: our reason, and what it means."""


@dataclass(frozen=True)
class Finding:
    """What became of a job, or what keeps it from starting, and what to do about it."""

    reason: str
    message: str
    last_lines: tuple[str, ...] = ()


def is_over(pod: Manifest, now: datetime) -> bool:
    """Whether nothing of a pod runs, or it is on a node that is lost."""
    return _status(pod).get("phase") in ("Succeeded", "Failed") or _is_lost(pod, now)


def condition(holder: Manifest, type_: str) -> Mapping[str, Any] | None:
    """Return a condition of a pod or Job, if it is True."""
    found = _condition(holder, type_)
    return found if found and found["status"] == "True" else None


def container_state(pod: Manifest, name: str, state: str) -> Mapping[str, Any] | None:
    """Return what is known of a container in this state (waiting, running, terminated), if it is in it."""
    found: Mapping[str, Any] | None = (_container(pod, name).get("state") or {}).get(state)
    return found


def end_of_pod(pod: Manifest, memory_gb: float, storage_gb: float) -> Finding | None:
    """Return how the job ended, as soon as its pod shows it; reason Completed if it ended well."""
    if _status(pod).get("phase") == "Succeeded":
        return _delivered(pod)
    return _disruption(pod, storage_gb) or _failure(pod, memory_gb) or _rejection(pod) or _deletion(pod)


def end_of_job(job: Manifest) -> Finding | None:
    """Return how the job ended, from its Job alone: of a pod that nobody has seen end."""
    if condition(job, "Complete"):
        return Finding("Completed", "The executor has ended and its results are delivered.")
    failed = condition(job, "Failed") or condition(job, "FailureTarget")
    if not failed:
        return None
    said = failed.get("message", "")
    if "DisruptionTarget" in said:
        return Finding("Evicted", f"the cluster ended its pod, which is gone: {said}")
    return Finding("ExecutorFailed", f"its pod failed and is gone: {said or failed.get('reason')}")


def trouble_of(pod: Manifest, now: datetime) -> Finding | None:
    """Return what keeps a pod from running its executor, if that is more than time."""
    scheduled = _condition(pod, "PodScheduled")
    if scheduled and scheduled["status"] == "False":
        if scheduled.get("reason") != "Unschedulable":
            return None
        return Finding(
            "Unschedulable",
            f"no node has room for its pod: {scheduled.get('message', '')} Add nodes, or offer less in spec.resources.",
        )
    return next(filter(None, (*_container_troubles(pod), _preparation_trouble(pod, now))), None)


def _container_troubles(pod: Manifest) -> Iterator[Finding | None]:
    statuses = _status(pod)
    for container in (*statuses.get("initContainerStatuses", ()), *statuses.get("containerStatuses", ())):
        name, state = container["name"], container.get("state") or {}
        waiting, crashes = state.get("waiting") or {}, not container.get("started") and "terminated" not in state
        reason, said = waiting.get("reason"), waiting.get("message", "")
        if reason in _IMAGE:
            yield Finding(
                "ImagePull",
                f"image {container.get('image')} of container {name} cannot be pulled: {said or reason}."
                " Correct its name, or give imagePullSecrets.",
            )
        elif reason in _NOT_STARTED:
            yield Finding("StartFailed", f"container {name} cannot start: {said or reason}")
        elif name == BRIDGE and container.get("restartCount", 0) and crashes:
            ended = (container.get("lastState") or {}).get("terminated") or {}
            said = "was killed for its memory" if ended.get("reason") == "OOMKilled" else f"ends with {_exit(ended)}"
            lines = _last_lines(ended)
            last = f": {lines[-1]}" if lines else ""
            yield Finding(
                "BridgeFailed", f"the bridge {said} again and again{last}. See {_logs(pod, BRIDGE)} --previous", lines
            )


def _preparation_trouble(pod: Manifest, now: datetime) -> Finding | None:
    scheduled, prepared = condition(pod, "PodScheduled"), _condition(pod, "PodReadyToStartContainers")
    if not scheduled or not prepared or prepared["status"] == "True" or condition(pod, "Initialized"):
        return None
    if now - _time(scheduled["lastTransitionTime"]) < _PREPARING:
        return None
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return Finding(
        "StartFailed",
        f"node {_node(pod)} cannot make the pod's volumes or network. See kubectl describe pod -n {namespace} {name}",
    )


def _delivered(pod: Manifest) -> Finding:
    bridge = container_state(pod, BRIDGE, "terminated")
    if bridge and bridge["exitCode"] != 0:
        lines = _last_lines(bridge)
        last = f": {lines[-1]}" if lines else ""
        return Finding(
            "ResultsUndelivered",
            f"the executor ended well, but the bridge with {_exit(bridge)}, so that results may be lost{last}."
            " If it ran out of time, raise jobs.terminationGraceSeconds.",
            lines,
        )
    return Finding("Completed", "The executor has ended and its results are delivered.")


def _disruption(pod: Manifest, storage_gb: float) -> Finding | None:
    """What the cluster did to a pod that did not end by itself."""
    status = _status(pod)
    said = status.get("message", "").strip()
    if status.get("reason") == "Evicted" and _OWN_STORAGE.search(said):
        message = f"it wrote more than its lease's {storage_gb:g} GB: {said} Request more storage, or keep less."
        return Finding("StorageExceeded", message, _last_lines(container_state(pod, EXECUTOR, "terminated")))
    if found := condition(pod, "DisruptionTarget"):
        reason, meaning = _DISRUPTIONS.get(found.get("reason", ""), ("Evicted", "the cluster ended its pod"))
        return Finding(reason, f"{meaning} (node {_node(pod)}): {said or found.get('message') or found.get('reason')}")
    if status.get("reason") == "Evicted":
        return Finding("Evicted", f"its node {_node(pod)} was short of resources: {said}")
    return None


def _failure(pod: Manifest, memory_gb: float) -> Finding | None:
    """How the executor failed."""
    executor = container_state(pod, EXECUTOR, "terminated")
    if not executor or executor["exitCode"] == 0:
        return None
    lines, logs = _last_lines(executor), _logs(pod, EXECUTOR)
    if executor.get("reason") == "OOMKilled":
        message = f"the executor needed more than its lease's {memory_gb:g} GB of memory; request more, or use less."
        return Finding("OutOfMemory", f"{message} See {logs}", lines)
    if executor.get("reason") in _NO_PROGRAM:
        return Finding("StartFailed", f"the executor cannot be started: {executor.get('message', '').strip()}", lines)
    last = f": {lines[-1]}" if lines else ""
    return _deletion(pod) or Finding(
        "ExecutorFailed", f"the executor ended with {_exit(executor)}{last}. See {logs}", lines
    )


def _rejection(pod: Manifest) -> Finding | None:
    """Why a node did not take a pod that was bound to it, or gave it up."""
    status = _status(pod)
    if status.get("phase") != "Failed":
        return None
    said = ": ".join(filter(None, (status.get("reason"), status.get("message")))) or "no reason given"
    return Finding("Unschedulable", f"node {_node(pod)} did not run the pod: {said}")


def _deletion(pod: Manifest) -> Finding | None:
    if "deletionTimestamp" not in pod["metadata"]:
        return None
    return Finding("JobDeleted", f"somebody deleted its pod {pod['metadata']['name']}; cancel HyphaJobs instead")


def _exit(terminated: Mapping[str, Any]) -> str:
    code = terminated.get("exitCode")
    return f"signal {code - 128}" if isinstance(code, int) and code > 128 else f"exit code {code}"


def _logs(pod: Manifest, container: str) -> str:
    return f"kubectl logs -n {pod['metadata']['namespace']} {pod['metadata']['name']} -c {container}"


def _last_lines(terminated: Mapping[str, Any] | None) -> tuple[str, ...]:
    text = (terminated or {}).get("message", "")
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-_MOST_LINES:]


def _is_lost(pod: Manifest, now: datetime) -> bool:
    """Whether a pod that is to end will not be heard of: its node was silent before, or is long after it was due."""
    metadata = pod["metadata"]
    if "deletionTimestamp" not in metadata:
        return False
    due = _time(metadata["deletionTimestamp"])
    if now > due + _SILENT:
        return True
    disruption, ready = condition(pod, "DisruptionTarget"), _condition(pod, "Ready")
    if not disruption or disruption.get("reason") != "DeletionByTaintManager" or not ready:
        return False
    asked = due - timedelta(seconds=metadata.get("deletionGracePeriodSeconds", 0))
    return bool(ready["status"] != "True") and _time(ready["lastTransitionTime"]) < asked


def _condition(holder: Manifest, type_: str) -> Mapping[str, Any] | None:
    conditions = _status(holder).get("conditions") or ()
    return next((found for found in conditions if found["type"] == type_), None)


def _container(pod: Manifest, name: str) -> Mapping[str, Any]:
    statuses = _status(pod)
    found = (*statuses.get("initContainerStatuses", ()), *statuses.get("containerStatuses", ()))
    return next((container for container in found if container["name"] == name), {})


def _node(pod: Manifest) -> str:
    return str((pod.get("spec") or {}).get("nodeName", "unknown"))


def _status(holder: Manifest) -> Mapping[str, Any]:
    return holder.get("status") or {}


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
