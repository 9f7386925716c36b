"""Conditions as kstatus reads them, and how they change."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

_LONGEST_MESSAGE = 4096


@dataclass(frozen=True)
class Condition:
    """One aspect of an object's state: True, False, or None while it is not known."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


def merged(
    before: Sequence[dict[str, Any]], now: Sequence[Condition], generation: int | None, time: datetime
) -> list[dict[str, Any]]:
    """Return the conditions as they are written: one that still says the same keeps its time of transition.

    With no generation they hold whatever the generation of the object: none of them says that a change was seen.
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
        "message": condition.message[:_LONGEST_MESSAGE],
        "lastTransitionTime": since,
    }
    return written if generation is None else written | {"observedGeneration": generation}


def timestamp(time: datetime) -> str:
    """Return a UTC time as the API writes it."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
