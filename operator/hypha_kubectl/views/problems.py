"""Something that is wrong, and what to do about it. Pure."""

from dataclasses import dataclass

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.reasons import WorkerReason


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, in the words of a condition, and what to do about it."""

    reason: str
    message: str
    remedy: str

    @classmethod
    def of(cls, reason: str, message: str) -> "Problem":
        """Return a problem with the remedy of its reason. A message that quotes its remedy loses it."""
        remedy = remedy_of(reason)
        return cls(reason, " ".join(message.replace(remedy, "").split()) if remedy else message, remedy)


def remedy_of(reason: str) -> str:
    """Return what to do for a reason, or nothing for one that this version does not know."""
    return next((known.remedy for known in (*WorkerReason, *JobReason) if known == reason), "")
