"""Conditions as kstatus reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_MAX_MESSAGE = 4096


@dataclass(frozen=True)
class Condition:
    """One aspect of an object's state. The status is True, False, or None while it is unknown."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


def merged(
    before: Sequence[dict[str, Any]], now: Sequence[Condition], generation: int | None, time: datetime
) -> list[dict[str, Any]]:
    """Return the conditions to write. A condition whose status is unchanged keeps its time of transition.

    Without a generation, the conditions do not name the generation that the operator observed.
    """
    old = {condition["type"]: condition for condition in before}
    return [_written(condition, old.get(condition.type), generation, time) for condition in now]


def _written(
    condition: Condition, before: dict[str, Any] | None, generation: int | None, time: datetime
) -> dict[str, Any]:
    status = "Unknown" if condition.status is None else str(condition.status)
    same = before is not None and before["status"] == status
    since = before["lastTransitionTime"] if before and same else timestamp(time)
    written = {
        "type": condition.type,
        "status": status,
        "reason": condition.reason,
        "message": condition.message[:_MAX_MESSAGE],
        "lastTransitionTime": since,
    }
    return written if generation is None else written | {"observedGeneration": generation}


def timestamp(time: datetime) -> str:
    """Return a UTC time in the API's format."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
