"""Drain a worker that is being deleted: cancel its jobs and wait until the node has notified their schedulers.

The finalizer that delays the deletion is held only while there are such jobs, so that an idle worker can be deleted
even if its operator is gone.
"""

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from hypha_contracts.kinds import HYPHA_JOB, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Conflict, NotFound, Unavailable
from hypha_contracts.names import DRAIN_FINALIZER, WORKER_LABEL
from hypha_contracts.object_status import is_ended, is_open
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.manifests import identity_of

REASON: Final = "the worker is being deleted"
NOT_DRAINED: Final = (
    "This is a foreground deletion, so the garbage collector deletes the controller and the jobs immediately, and no "
    "scheduler is notified. Delete in the background (kubectl's default; ArgoCD: PrunePropagationPolicy=background)."
)
_REPORTING: Final = timedelta(seconds=60)
"""How long the node may take to notify schedulers after the grace period of its jobs."""

_log = logging.getLogger(__name__)


def is_foreground(worker: Manifest) -> bool:
    """Whether the garbage collector already deletes the worker's children, although finalizers keep the worker."""
    return "foregroundDeletion" in worker["metadata"].get("finalizers", [])


async def hold(worker: Manifest, jobs: Iterable[Manifest], cluster: Cluster) -> None:
    """Add the finalizer that keeps a deleted worker while it has jobs to drain, or remove it if there are none."""
    if not any(map(is_open, jobs)):
        await release(worker, cluster)
    elif DRAIN_FINALIZER not in worker["metadata"].get("finalizers", []):
        held = identity_of(worker)
        held["metadata"]["finalizers"] = [DRAIN_FINALIZER]
        await cluster.apply(held)


async def release(worker: Manifest, cluster: Cluster) -> bool:
    """Remove the finalizer, whichever field manager set it. Return False if the worker has changed in the meantime."""
    finalizers = worker["metadata"].get("finalizers", [])
    if DRAIN_FINALIZER not in finalizers:
        return True
    released = identity_of(worker)
    released["metadata"]["resourceVersion"] = worker["metadata"]["resourceVersion"]
    released["metadata"]["finalizers"] = [name for name in finalizers if name != DRAIN_FINALIZER]
    try:
        await cluster.merge(released)
    except Conflict:
        return False
    except NotFound:
        pass
    return True


async def drain(worker: Manifest, grace_s: float, cluster: Cluster, clock: Clock) -> str | None:
    """Cancel the worker's jobs. Return what the deletion waits for, or None if the worker is drained.

    A job that cannot be cancelled, for example because a webhook refuses, delays the deletion no longer than others do.

    Args:
        worker: the HyphaWorker, which is being deleted.
        grace_s: the grace period of its jobs in seconds.
        cluster: the API server.
        clock: decides when the grace period is over.
    """
    metadata = worker["metadata"]
    selector = f"{WORKER_LABEL}={metadata['name']}"
    jobs = await cluster.find(HYPHA_JOB, metadata["namespace"], label_selector=selector)
    for job in jobs:
        if not is_ended(job) and "cancel" not in job["spec"] and not await _cancel(job, cluster):
            break
    open_jobs = [job for job in jobs if is_open(job)]
    deadline = datetime.fromisoformat(metadata["deletionTimestamp"]) + timedelta(seconds=grace_s) + _REPORTING
    if open_jobs and clock.now() < deadline:
        if is_foreground(worker):
            return f"{len(open_jobs)} of its jobs are ending, until {deadline:%H:%M:%S} UTC. {NOT_DRAINED}"
        return f"{len(open_jobs)} of its jobs are ending; the node notifies schedulers until {deadline:%H:%M:%S} UTC."
    for job in open_jobs:
        _log.warning("%s/%s: the node did not report its end", metadata["namespace"], job["metadata"]["name"])
    return None


async def _cancel(job: Manifest, cluster: Cluster) -> bool:
    """Cancel a job. If this fails, the next reconcile tries again.

    Return False if there was no answer, for example because of a webhook that is down. The call took up to a minute
    then, and those for other jobs would take as long.
    """
    namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
    try:
        await cluster.apply({**identity_of(job), "spec": {"cancel": {"reason": REASON}}})
    except (Conflict, NotFound):
        _log.info("%s/%s: deleted before it was cancelled", namespace, name)
    except ApiError as error:
        _log.warning("%s/%s: it could not be cancelled: %s", namespace, name, error)
        return not isinstance(error, Unavailable)
    return True
