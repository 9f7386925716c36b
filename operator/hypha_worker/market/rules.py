"""What a ledger grants."""

from dataclasses import dataclass

from hypha_messages.types import Resources
from hypha_worker.market.capacity import Capacity


@dataclass(frozen=True)
class LedgerRules:
    """What a ledger grants. Times are in seconds.

    Attributes:
        capacity: what the leases may reserve.
        share: what the leases of one scheduler may reserve together; None if that is everything.
        temporary_s: how long an offer waits for its first renewal.
        duration_s: duration of a lease, counted from each renewal.
        ended_s: how long the lease of a finished job can still be renewed.
        kept_s: how long the runtime keeps records of an ended job.
        prune_s: interval between two removals of ended leases.
        max_live: maximum number of leases. One scheduler may have half of them.
        max_job_s: how long a job may run; None if that is as long as its lease.
        closes: when all leases end, in seconds since the epoch; None if they do not.
    """

    capacity: Capacity
    share: Resources | None = None
    temporary_s: float = 0.5
    duration_s: float = 10
    ended_s: float = 60
    kept_s: float = 0
    prune_s: float = 0.25
    max_live: int = 1024
    max_job_s: float | None = None
    closes: float | None = None
