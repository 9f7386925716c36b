"""Drain a worker that is being deleted: cancel its jobs and wait until the node has notified their schedulers."""

import logging
from datetime import datetime, timedelta
from typing import Final

from hypha_contracts.kubernetes_errors import Conflict
from hypha_contracts.names import WORKER_LABEL, reviewer_binding
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.conditions import is_true
from hypha_operator.machinery.kinds import CLUSTER_ROLE_BINDING, HYPHA_JOB, Manifest
from hypha_operator.machinery.manifests import identity_of
from hypha_resources.job import REPORTED, TERMINAL

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


async def drain(worker: Manifest, grace_s: float, cluster: Cluster, clock: Clock) -> str | None:
    """Cancel the worker's jobs. Return what the deletion waits for, or None if the worker is drained.

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
        if not _is_ended(job) and "cancel" not in job["spec"]:
            await _cancel(job, cluster)
    open_jobs = [job for job in jobs if not (_is_ended(job) and is_true(job, REPORTED))]
    deadline = datetime.fromisoformat(metadata["deletionTimestamp"]) + timedelta(seconds=grace_s) + _REPORTING
    if open_jobs and clock.now() < deadline:
        if is_foreground(worker):
            return f"{len(open_jobs)} of its jobs are ending, until {deadline:%H:%M:%S} UTC. {NOT_DRAINED}"
        return f"{len(open_jobs)} of its jobs are ending; the node notifies schedulers until {deadline:%H:%M:%S} UTC."
    for job in open_jobs:
        _log.warning("%s/%s: the node did not report its end", metadata["namespace"], job["metadata"]["name"])
    await cluster.delete(CLUSTER_ROLE_BINDING, None, reviewer_binding(metadata["namespace"], metadata["name"]))
    return None


async def _cancel(job: Manifest, cluster: Cluster) -> None:
    try:
        await cluster.apply({**identity_of(job), "spec": {"cancel": {"reason": REASON}}})
    except Conflict:
        _log.info("%s/%s: deleted before it was cancelled", job["metadata"]["namespace"], job["metadata"]["name"])


def _is_ended(job: Manifest) -> bool:
    return (job.get("status") or {}).get("phase") in TERMINAL
