"""Time limits on which several processes must agree, in seconds."""

from datetime import timedelta
from typing import Final

LEASE_GRACE_S: Final = 60.0
"""How long a job continues after the deadline of its lease while its node is unreachable."""

DRAIN_S: Final = 120
"""How long the bridge may send results after the executor has succeeded, unless the HyphaWorker sets another time."""

STOP_S: Final = 30
"""How long after `DRAIN_S` the pod of a job may take to end its executor and bridge."""

CERTIFICATE_EXPIRES_SOON: Final = timedelta(days=7)
"""How long before its end the owner of a worker is warned that its certificate expires."""

KEEP_ENDED_S: Final = 3600
"""How long the pod of an ended job, or its logs on a host, are kept unless the configuration sets another time."""

KEEP_HYPHA_JOB_S: Final = 6 * 3600
"""How long an ended HyphaJob is kept unless the HyphaWorker sets another time."""


def connector_deadline_s(lease_s: float) -> float:
    """Return how long a bridge retries while its node does not answer.

    The lease, not the bridge, ends a job whose node is away: either the lease expires, or the next node grants it once
    more so that the scheduler can come back.

    Args:
        lease_s: the duration of a lease, counted from each renewal.
    """
    return 2 * lease_s + LEASE_GRACE_S
