"""Detect that the controller of a job is away: its lease's deadline has passed without a renewal."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hypha_contracts.times import LEASE_GRACE_S

_CONFIRM_S: Final = LEASE_GRACE_S / 2
"""The time from a deadline to the first check with the API server, and from there to the second check."""


@dataclass
class _ObservedDeadline:
    deadline: datetime
    due_s: float
    checked: bool = False


class LeaseWatch:
    """The deadlines that this operator process has observed.

    A deadline is measured from the moment at which this process first observed it. Some time after it has passed, the
    operator asks the API server whether the controller has renewed the lease, and later once more. Therefore neither
    an outage of the API server, nor a silent watch, nor a restart of the operator ends a job whose controller lives.
    """

    def __init__(self) -> None:
        self._deadlines: dict[str, _ObservedDeadline] = {}

    def remaining_s(self, uid: str, deadline: datetime, now: datetime, monotonic_s: float) -> float:
        """Return seconds until the next check, zero or less if the check is due."""
        observed = self._deadlines.get(uid)
        if observed is None or observed.deadline != deadline:
            left_s = max((deadline - now).total_seconds(), 0.0)
            observed = self._deadlines[uid] = _ObservedDeadline(deadline, monotonic_s + left_s + _CONFIRM_S)
        return observed.due_s - monotonic_s

    def confirm(self, uid: str, monotonic_s: float) -> bool:
        """Record that the API server still has the deadline. Return True the second time, when the lease is lost."""
        observed = self._deadlines[uid]
        lost, observed.checked, observed.due_s = observed.checked, True, monotonic_s + _CONFIRM_S
        return lost

    def release(self, uid: str) -> None:
        """Discard a job's deadline, because the job is gone or the API server did not answer."""
        self._deadlines.pop(uid, None)
