"""Read the status of objects: their conditions, and how far a HyphaJob is."""

from collections.abc import Mapping
from typing import Any, Final

from hypha_contracts.kinds import Manifest

TERMINAL: Final = frozenset({"Succeeded", "Failed"})
"""The phases of a HyphaJob of which no part runs any more."""
REPORTED: Final = "Reported"
"""The condition that the node sets once it has reported the end of the job, or will not report it again."""


def find_condition(manifest: Manifest | None, type_: str) -> Mapping[str, Any]:
    """Return an object's condition of one type, or an empty mapping."""
    conditions = ((manifest or {}).get("status") or {}).get("conditions") or ()
    return next((condition for condition in conditions if condition["type"] == type_), {})


def is_true(manifest: Manifest | None, type_: str) -> bool:
    """Whether an object has a condition of this type, with status True."""
    return bool(find_condition(manifest, type_).get("status") == "True")


def is_ended(hypha_job: Manifest) -> bool:
    """Whether no part of a HyphaJob runs any more."""
    return (hypha_job.get("status") or {}).get("phase") in TERMINAL


def is_open(hypha_job: Manifest) -> bool:
    """Whether a HyphaJob has not ended, or its node has not recorded that the scheduler knows the end."""
    return not (is_ended(hypha_job) and is_true(hypha_job, REPORTED))
