"""Whether the controller of a job is away: its lease's deadline has passed, and nobody moves it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hypha_contracts.times import LEASE_GRACE_S

_CONFIRM_S: Final = LEASE_GRACE_S / 2
"""How long after a deadline the operator confirms it with the API server, and how long after that once more."""


@dataclass
class _Sight:
    deadline: datetime
    due_s: float
    asked: bool = False


class LeaseWatch:
    """What this operator itself has seen of deadlines; it takes nobody's word for how long they have passed.

    A deadline counts from when it was first seen. When it has passed for a while, one asks the API server whether it
    still stands, and a while later once more: so neither an outage of the API server, nor a silent watch, nor a new
    operator ends a job whose controller lives.
    """

    def __init__(self) -> None:
        self._sights: dict[str, _Sight] = {}

    def remaining_s(self, uid: str, deadline: datetime, now: datetime, monotonic_s: float) -> float:
        """Return seconds until one has to ask; not positive: now."""
        sight = self._sights.get(uid)
        if sight is None or sight.deadline != deadline:
            left_s = max((deadline - now).total_seconds(), 0.0)
            sight = self._sights[uid] = _Sight(deadline, monotonic_s + left_s + _CONFIRM_S)
        return sight.due_s - monotonic_s

    def confirm(self, uid: str, monotonic_s: float) -> bool:
        """Note that the API server says the deadline still stands; True if it said so before: the lease is lost."""
        sight = self._sights[uid]
        lost, sight.asked, sight.due_s = sight.asked, True, monotonic_s + _CONFIRM_S
        return lost

    def forget(self, uid: str) -> None:
        """Begin anew: the job is gone, or the API server did not answer."""
        self._sights.pop(uid, None)
