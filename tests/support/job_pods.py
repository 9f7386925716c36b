"""Pods and Jobs of a HyphaJob as the kubelet and the controllers of Kubernetes 1.37 write them."""

from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 1, 1, tzinfo=UTC)
NODE = "node-1"


def at(seconds: float) -> str:
    """Return the time this many seconds after the pod's creation."""
    return (START + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


def condition(type_: str, status: bool = True, seconds: float = 0, **rest: str) -> dict[str, Any]:
    """Return a condition that has had its status since this time."""
    return {"type": type_, "status": str(status), "lastTransitionTime": at(seconds), **rest}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    """A container that waits."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(seconds: float = 5) -> dict[str, Any]:
    """A container that runs."""
    return {"running": {"startedAt": at(seconds)}}


def terminated(exit_code: int, reason: str | None = None, message: str = "", seconds: float = 30) -> dict[str, Any]:
    """A container that has ended."""
    state = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "startedAt": at(5),
        "finishedAt": at(seconds),
        "containerID": "containerd://0123",
    }
    return {"terminated": state | ({"message": message} if message else {})}


def container(name: str, state: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """The status of a container."""
    image = {"bridge": "bridge:1", "executor": "trainer:1"}[name]
    runs = "running" in state
    status = {"name": name, "image": image, "imageID": "", "ready": runs, "started": runs, "restartCount": 0}
    return status | {"state": state, "lastState": {}} | rest


def pod(
    phase: str = "Running",
    *,
    bridge: dict[str, Any] | None = None,
    executor: dict[str, Any] | None = None,
    conditions: tuple[dict[str, Any], ...] = (),
    node: str | None = NODE,
    deleted: float | None = None,
    grace_s: int = 150,
    **status: Any,
) -> dict[str, Any]:
    """Return a pod; `bridge` and `executor` are states or statuses, `deleted` is the deadline of its deletion."""
    metadata: dict[str, Any] = {
        "name": "hypha-1-abcde",
        "namespace": "gpu",
        "uid": "22222222-2222-2222-2222-222222222222",
        "creationTimestamp": at(0),
        "ownerReferences": [{"kind": "Job", "name": "hypha-1", "uid": JOB_UID, "controller": True}],
    }
    if deleted is not None:
        metadata |= {"deletionTimestamp": at(deleted), "deletionGracePeriodSeconds": grace_s}
    full: dict[str, Any] = {"phase": phase, "conditions": list(conditions), **status}
    if bridge:
        full["initContainerStatuses"] = [bridge if "name" in bridge else container("bridge", bridge)]
    if executor:
        full["containerStatuses"] = [executor if "name" in executor else container("executor", executor)]
    spec = {"nodeName": node} if node else {}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": full}


JOB_UID = "33333333-3333-3333-3333-333333333333"


def job(*conditions: dict[str, Any], suspend: bool = False, deleted: bool = False) -> dict[str, Any]:
    """A Job."""
    metadata: dict[str, Any] = {"name": "hypha-1", "namespace": "gpu", "uid": JOB_UID, "creationTimestamp": at(0)}
    if deleted:
        metadata["deletionTimestamp"] = at(10)
    spec = {"suspend": suspend}
    return {"kind": "Job", "metadata": metadata, "spec": spec, "status": {"conditions": list(conditions)}}
