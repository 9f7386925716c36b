"""Derive the state of a job from the statuses of its pods and its Job. Performs no I/O."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.names import BRIDGE, EXECUTOR, JOB_LABEL, OUTPUT_VOLUME
from hypha_contracts.object_status import find_condition, is_true
from hypha_contracts.text import escaped
from hypha_operator.machinery.conditions import container_statuses

_LOST_AFTER: Final = timedelta(seconds=60)
"""A pod that still exists this long after its deletion was due counts as lost with its node."""
_PREPARATION_TIMEOUT: Final = timedelta(seconds=60)
"""How long a pod's volumes and network may take."""
_MAX_LINES: Final = 20
_MAX_LINE_CHARS: Final = 500
_IMAGE: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_NOT_STARTED: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_NO_PROGRAM: Final = frozenset({"StartError", "ContainerCannotRun"})
_OWN_STORAGE: Final = re.compile("exceeds the limit|exceeded its local ephemeral storage|exceeds the total limit")
_DISRUPTIONS: Final = {
    "PreemptionByScheduler": (
        JobReason.PREEMPTED,
        "a pod of higher priority took its place; raise priorityClassName",
    ),
    "DeletionByTaintManager": (JobReason.NODE_LOST, "its node does not answer, or no longer tolerates the pod"),
    "DeletionByPodGC": (JobReason.NODE_LOST, "its node is gone"),
    "EvictionByEvictionAPI": (JobReason.EVICTED, "its node was drained, or another client evicted the pod"),
    "TerminationByKubelet": (JobReason.EVICTED, "its node was short of resources or shut down"),
}
"""The reason of the pod's condition DisruptionTarget: the reason and the message for the job."""
_MODEL_KEPT: Final = re.compile(r"the trained model is in (\S+)")
"""What `hypha_trainer.output` logs."""
_COMPLETED_MESSAGE: Final = "The executor has ended and the bridge has delivered its results."


@dataclass(frozen=True)
class Finding:
    """How a job ended, or what blocks it, with a remedy."""

    reason: JobReason
    message: str
    last_lines: tuple[str, ...] = ()


def is_over(pod: Manifest, now: datetime) -> bool:
    """Whether no container of the pod runs any more, or its node is lost."""
    return _status(pod).get("phase") in ("Succeeded", "Failed") or _is_lost(pod, now)


def container_state(pod: Manifest, name: str, state: str) -> Mapping[str, Any] | None:
    """Return the details of a container's state (waiting, running, terminated), or None if it is in another state."""
    found: Mapping[str, Any] | None = (_container(pod, name).get("state") or {}).get(state)
    return found


def started_at(pod: Manifest, name: str) -> str | None:
    """Return when a container that runs or has ended was last started, if its node knows that."""
    state = container_state(pod, name, "running") or container_state(pod, name, "terminated") or {}
    start: str | None = state.get("startedAt")
    return start


def lingering_container(pod: Manifest) -> str | None:
    """Return a container that keeps the pod running after its executor has ended, such as a mesh's, or None."""
    if container_state(pod, EXECUTOR, "terminated") is None or _status(pod).get("phase") in ("Succeeded", "Failed"):
        return None
    others = (container for container in _status(pod).get("containerStatuses") or () if container["name"] != EXECUTOR)
    return next((str(other["name"]) for other in others if "terminated" not in (other.get("state") or {})), None)


def end_of_bridge(pod: Manifest) -> Finding | None:
    """Return whether the bridge of a pod whose executor has succeeded delivered the results, or None while it runs."""
    return _delivered(pod) if container_state(pod, BRIDGE, "terminated") else None


def has_started(pod: Manifest) -> bool:
    """Whether the executor's program has been running, however it ended. A container that was never created has not."""
    if container_state(pod, EXECUTOR, "running"):
        return True
    ended = container_state(pod, EXECUTOR, "terminated")
    created = ended and (ended.get("startedAt") or ended.get("containerID"))
    return bool(ended and created and ended.get("reason") not in _NO_PROGRAM)


def bridge_restart(pod: Manifest) -> Finding | None:
    """Return why a job fails whose bridge was restarted after its executor had started, or None if it was not.

    The new bridge discards the files that the old one had accepted or received.
    """
    bridge, executor_start = _container(pod, BRIDGE), started_at(pod, EXECUTOR)
    if not (bridge.get("restartCount") and executor_start and has_started(pod)):
        return None
    ended = (bridge.get("lastState") or {}).get("terminated") or {}
    # The kubelet writes all times in one format, so they compare as text. It knows none of a container that it lost.
    if max(started_at(pod, BRIDGE) or "", ended.get("finishedAt") or "") <= executor_start:
        return None
    out_of_memory = ended.get("reason") == "OOMKilled"
    end = "exceeded its memory limit" if out_of_memory else f"ended with {_exit(ended)}"
    remedy = "Raise the memory in jobs.bridgeResources.limits." if out_of_memory else JobReason.BRIDGE_FAILED.remedy
    lines = _last_lines(ended)
    last = _after_colon(lines)
    return Finding(
        JobReason.BRIDGE_FAILED,
        f"the bridge {end} after the executor had started. The cluster restarted it, but files that it was to deliver "
        f"may be lost{last}. {remedy} See {_logs(pod, BRIDGE)} --previous",
        lines,
    )


def end_of_pod(pod: Manifest, memory_gb: float, storage_gb: float) -> Finding | None:
    """Return how the job ended according to its pod, or None while it runs. The reason is Completed if it succeeded."""
    if _status(pod).get("phase") == "Succeeded":
        return _delivered(pod)
    ends = _disruption(pod, storage_gb), bridge_restart(pod), _failure(pod, memory_gb), _rejection(pod), _deletion(pod)
    return next(filter(None, ends), None)


def end_of_job(job: Manifest) -> Finding | None:
    """Return how the job ended according to its Job, for a pod whose end the operator did not observe."""
    if is_true(job, "Complete"):
        return Finding(JobReason.COMPLETED, _COMPLETED_MESSAGE)
    type_ = next((type_ for type_ in ("Failed", "FailureTarget") if is_true(job, type_)), None)
    if type_ is None:
        return None
    failed = find_condition(job, type_)
    message = failed.get("message", "")
    if "DisruptionTarget" in message:
        return Finding(JobReason.EVICTED, f"the cluster ended the job's pod, which is gone: {message}")
    return Finding(JobReason.EXECUTOR_FAILED, f"the job's pod failed and is gone: {message or failed.get('reason')}")


def obstacle_of(pod: Manifest, now: datetime) -> Finding | None:
    """Return what blocks a pod's executor, or None if it is only a matter of time."""
    scheduled = find_condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        if scheduled.get("reason") != "Unschedulable":
            return None
        message = f"no node has room for the job's pod: {scheduled.get('message', '')} {JobReason.UNSCHEDULABLE.remedy}"
        return Finding(JobReason.UNSCHEDULABLE, message)
    return next(filter(None, (*_container_obstacles(pod), _preparation_obstacle(pod, now))), None)


def _container_obstacles(pod: Manifest) -> Iterator[Finding | None]:
    for container in container_statuses(pod):
        name, state = container["name"], container.get("state") or {}
        waiting, crashes = state.get("waiting") or {}, not container.get("started") and "terminated" not in state
        reason, message = waiting.get("reason"), waiting.get("message", "")
        if reason in _IMAGE:
            yield Finding(
                JobReason.IMAGE_PULL,
                f"the node cannot pull image {container.get('image')} of container {name}: {message or reason}. "
                f"{JobReason.IMAGE_PULL.remedy}",
            )
        elif reason in _NOT_STARTED:
            yield Finding(JobReason.START_FAILED, f"container {name} cannot start: {message or reason}")
        elif name == BRIDGE and container.get("restartCount", 0) and crashes:
            ended = (container.get("lastState") or {}).get("terminated") or {}
            out_of_memory = ended.get("reason") == "OOMKilled"
            end = "exceeds its memory limit" if out_of_memory else f"ends with {_exit(ended)}"
            lines = _last_lines(ended)
            last = _after_colon(lines)
            yield Finding(
                JobReason.BRIDGE_FAILED,
                f"the bridge {end} again and again{last}. See {_logs(pod, BRIDGE)} --previous",
                lines,
            )


def _preparation_obstacle(pod: Manifest, now: datetime) -> Finding | None:
    scheduled, prepared = find_condition(pod, "PodScheduled"), find_condition(pod, "PodReadyToStartContainers")
    if scheduled.get("status") != "True" or prepared.get("status", "True") == "True" or is_true(pod, "Initialized"):
        return None
    if now - datetime.fromisoformat(scheduled["lastTransitionTime"]) < _PREPARATION_TIMEOUT:
        return None
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    return Finding(
        JobReason.START_FAILED,
        f"node {_node(pod)} cannot set up the pod's volumes or network. See kubectl describe pod -n {namespace} {name}",
    )


def _delivered(pod: Manifest) -> Finding:
    if restart := bridge_restart(pod):
        return restart
    bridge = container_state(pod, BRIDGE, "terminated")
    if bridge and bridge["exitCode"] != 0:
        lines = _last_lines(bridge)
        last = _after_colon(lines)
        return Finding(
            JobReason.RESULTS_UNDELIVERED,
            f"the executor succeeded, but the bridge ended with {_exit(bridge)}, so results may be lost{last}. "
            f"{JobReason.RESULTS_UNDELIVERED.remedy}",
            lines,
        )
    lines = _last_lines(container_state(pod, EXECUTOR, "terminated"))
    return Finding(JobReason.COMPLETED, " ".join(filter(None, (_COMPLETED_MESSAGE, _kept_model(pod)))), lines)


def _kept_model(pod: Manifest) -> str:
    """Return where the executor says that it has kept the model, and which claim holds it."""
    spec = pod.get("spec") or {}
    volume = next((volume for volume in spec.get("volumes") or () if volume["name"] == OUTPUT_VOLUME), None)
    lines = _last_lines(container_state(pod, EXECUTOR, "terminated"))
    folder = next((found[1] for line in reversed(lines) if (found := _MODEL_KEPT.search(line))), None)
    if volume is None or folder is None:
        return ""
    claim, directory = volume["persistentVolumeClaim"]["claimName"], pod["metadata"]["labels"].get(JOB_LABEL, "")
    return f"The trained model is in {folder}. That is below {directory} in the PersistentVolumeClaim {claim}."


def _disruption(pod: Manifest, storage_gb: float) -> Finding | None:
    """Return why the cluster ended a pod, or None if the cluster did not end it."""
    status = _status(pod)
    detail = status.get("message", "").strip()
    if status.get("reason") == "Evicted" and _OWN_STORAGE.search(detail):
        remedy = JobReason.STORAGE_EXCEEDED.remedy
        message = f"the job wrote more than its lease's {storage_gb:g} GB: {detail} {remedy}"
        return Finding(JobReason.STORAGE_EXCEEDED, message, _last_lines(container_state(pod, EXECUTOR, "terminated")))
    if is_true(pod, "DisruptionTarget"):
        found = find_condition(pod, "DisruptionTarget")
        unknown = JobReason.EVICTED, "the cluster ended its pod"
        reason, meaning = _DISRUPTIONS.get(found.get("reason", ""), unknown)
        detail = detail or found.get("message") or found.get("reason")
        return Finding(reason, f"{meaning} (node {_node(pod)}): {detail}")
    if status.get("reason") == "Evicted":
        return Finding(JobReason.EVICTED, f"its node {_node(pod)} was short of resources: {detail}")
    return None


def _failure(pod: Manifest, memory_gb: float) -> Finding | None:
    """Return how the executor failed, if it did."""
    executor = container_state(pod, EXECUTOR, "terminated")
    if not executor or executor["exitCode"] == 0:
        return None
    lines, logs = _last_lines(executor), _logs(pod, EXECUTOR)
    if executor.get("reason") == "OOMKilled":
        message = f"the executor needed more than its lease's {memory_gb:g} GB of memory"
        return Finding(JobReason.OUT_OF_MEMORY, f"{message}. {JobReason.OUT_OF_MEMORY.remedy} See {logs}", lines)
    if executor.get("reason") in _NO_PROGRAM:
        message = f"the executor cannot start: {executor.get('message', '').strip()}"
        return Finding(JobReason.START_FAILED, message, lines)
    if not has_started(pod):  # the kubelet says so of a container that it has not created
        return None
    last = _after_colon(lines)
    return _deletion(pod) or Finding(
        JobReason.EXECUTOR_FAILED, f"the executor ended with {_exit(executor)}{last}. See {logs}", lines
    )


def _rejection(pod: Manifest) -> Finding | None:
    """Return why a node rejected or abandoned a pod that was bound to it."""
    status = _status(pod)
    if status.get("phase") != "Failed":
        return None
    detail = ": ".join(filter(None, (status.get("reason"), status.get("message")))) or "no reason given"
    return Finding(JobReason.UNSCHEDULABLE, f"node {_node(pod)} did not run the pod: {detail}")


def _deletion(pod: Manifest) -> Finding | None:
    if "deletionTimestamp" not in pod["metadata"]:
        return None
    message = f"another client deleted the job's pod {pod['metadata']['name']}. {JobReason.JOB_DELETED.remedy}"
    return Finding(JobReason.JOB_DELETED, message)


def _container(pod: Manifest, name: str) -> Mapping[str, Any]:
    return next((container for container in container_statuses(pod) if container["name"] == name), {})


def _exit(terminated: Mapping[str, Any]) -> str:
    code = terminated.get("exitCode")
    return f"signal {code - 128}" if isinstance(code, int) and code > 128 else f"exit code {code}"


def _logs(pod: Manifest, container: str) -> str:
    return f"kubectl logs -n {pod['metadata']['namespace']} {pod['metadata']['name']} -c {container}"


def _last_lines(terminated: Mapping[str, Any] | None) -> tuple[str, ...]:
    text = (terminated or {}).get("message", "")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()][-_MAX_LINES:]
    return tuple(escaped(line, _MAX_LINE_CHARS) for line in lines)


def _after_colon(lines: tuple[str, ...]) -> str:
    """Return the last line as the end of a message, after a colon; an empty text without lines."""
    return f": {lines[-1]}" if lines else ""


def _is_lost(pod: Manifest, now: datetime) -> bool:
    """Whether the node of a pod that is being deleted is lost.

    The node did not answer before the deletion, or the pod still exists long after the deletion was due.
    """
    metadata = pod["metadata"]
    if "deletionTimestamp" not in metadata:
        return False
    due = datetime.fromisoformat(metadata["deletionTimestamp"])
    if now > due + _LOST_AFTER:
        return True
    disruption, ready = find_condition(pod, "DisruptionTarget"), find_condition(pod, "Ready")
    if (disruption.get("status"), disruption.get("reason")) != ("True", "DeletionByTaintManager"):
        return False
    deleted = due - timedelta(seconds=metadata.get("deletionGracePeriodSeconds", 0))
    silent = ready.get("status", "True") != "True"
    return silent and datetime.fromisoformat(ready["lastTransitionTime"]) < deleted


def _node(pod: Manifest) -> str:
    return str((pod.get("spec") or {}).get("nodeName", "unknown"))


def _status(holder: Manifest) -> Mapping[str, Any]:
    return holder.get("status") or {}
