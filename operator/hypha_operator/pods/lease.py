"""Detect that the controller of a job is away: its lease's deadline has passed and nobody moved it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hypha_contracts.times import LEASE_GRACE_S

_CONFIRM_S: Final = LEASE_GRACE_S / 2
"""How long after a deadline the operator checks it with the API server, and how long after that once more."""


@dataclass
class _ObservedDeadline:
    deadline: datetime
    due_s: float
    checked: bool = False


class LeaseWatch:
    """The deadlines that this operator has observed, and since when.

    A deadline counts from when this operator first observed it. When it has passed for a while, the operator checks
    with the API server whether it still stands, and a while later once more. So neither an outage of the API server,
    nor a silent watch, nor a new operator ends a job whose controller lives.
    """

    def __init__(self) -> None:
        self._deadlines: dict[str, _ObservedDeadline] = {}

    def remaining_s(self, uid: str, deadline: datetime, now: datetime, monotonic_s: float) -> float:
        """Return seconds until the next check; zero or less if it is due."""
        observed = self._deadlines.get(uid)
        if observed is None or observed.deadline != deadline:
            left_s = max((deadline - now).total_seconds(), 0.0)
            observed = self._deadlines[uid] = _ObservedDeadline(deadline, monotonic_s + left_s + _CONFIRM_S)
        return observed.due_s - monotonic_s

    def confirm(self, uid: str, monotonic_s: float) -> bool:
        """Record that the API server still has the deadline; return whether the lease is lost, as after two checks."""
        observed = self._deadlines[uid]
        lost, observed.checked, observed.due_s = observed.checked, True, monotonic_s + _CONFIRM_S
        return lost

    def release(self, uid: str) -> None:
        """Start anew, because the job is gone or the API server did not answer."""
        self._deadlines.pop(uid, None)
