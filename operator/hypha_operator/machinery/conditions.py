"""Write conditions as kstatus reads them, and read the statuses of a pod's containers."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hypha_contracts.kinds import Manifest
from hypha_contracts.object_status import find_condition
from hypha_contracts.text import escaped


@dataclass(frozen=True)
class Condition:
    """One aspect of an object's state. The status is True, False, or None while it is unknown."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


def merged(
    manifest: Manifest, conditions: Sequence[Condition], generation: int | None, time: datetime
) -> list[dict[str, Any]]:
    """Return the conditions to write to an object. A condition whose status is unchanged keeps its time of transition.

    Without a generation, the conditions do not name the generation that the operator observed.
    """
    observed = {} if generation is None else {"observedGeneration": generation}
    return [_written(condition, find_condition(manifest, condition.type), time) | observed for condition in conditions]


def _written(condition: Condition, before: Mapping[str, Any], time: datetime) -> dict[str, Any]:
    status = "Unknown" if condition.status is None else str(condition.status)
    return {
        "type": condition.type,
        "status": status,
        "reason": condition.reason,
        "message": escaped(condition.message),
        "lastTransitionTime": before["lastTransitionTime"] if before.get("status") == status else timestamp(time),
    }


def differs(manifest: Manifest, status: Mapping[str, Any], fields: Collection[str]) -> bool:
    """Whether the operator has to write an object's status. Fields and conditions of other writers do not count.

    Args:
        manifest: the object with its current status.
        status: the status to write.
        fields: the fields, besides conditions, that the operator writes.
    """
    before = manifest.get("status") or {}
    return any(before.get(field) != status.get(field) for field in fields) or any(
        find_condition(manifest, condition["type"]) != condition for condition in status["conditions"]
    )


def container_statuses(pod: Manifest) -> Sequence[Mapping[str, Any]]:
    """Return the statuses of a pod's containers, init containers first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def timestamp(time: datetime) -> str:
    """Return a UTC time in the API's format."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def exact_timestamp(time: datetime) -> str:
    """Return a UTC time in the API's format with microseconds, for comparisons within a second."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
