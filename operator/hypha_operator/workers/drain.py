"""Drain a worker that is being deleted: cancel its jobs and wait until the node has notified their schedulers."""

import logging
from datetime import datetime, timedelta
from typing import Final

from hypha_contracts.kubernetes_errors import Conflict
from hypha_contracts.names import WORKER_LABEL, reviewer_binding
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.kinds import CLUSTER_ROLE_BINDING, HYPHA_JOB, Manifest
from hypha_resources.job import REPORTED, TERMINAL

REASON: Final = "the worker is being deleted"
NOT_DRAINED: Final = (
    "This is a foreground deletion, so the garbage collector deletes controller and jobs at once, and nobody notifies "
    "their schedulers. Delete in the background (kubectl's default; ArgoCD: PrunePropagationPolicy=background)."
)
_REPORTING: Final = timedelta(seconds=60)
"""How long the node may take to notify schedulers after its jobs had their time to end."""

_log = logging.getLogger(__name__)


def is_foreground(worker: Manifest) -> bool:
    """Whether the garbage collector deletes the worker's children now, although finalizers keep the worker."""
    return "foregroundDeletion" in worker["metadata"].get("finalizers", [])


async def drain(worker: Manifest, grace_s: float, cluster: Cluster, clock: Clock) -> str | None:
    """Cancel the worker's jobs; return a message about what the deletion waits for, or None once it is done.

    Args:
        worker: the HyphaWorker, which is being deleted.
        grace_s: how long its jobs may take to end, in seconds.
        cluster: the API server.
        clock: the time that ends the waiting.
    """
    metadata = worker["metadata"]
    selector = f"{WORKER_LABEL}={metadata['name']}"
    jobs = await cluster.find(HYPHA_JOB, metadata["namespace"], label_selector=selector)
    for job in jobs:
        if not _is_ended(job) and "cancel" not in job["spec"]:
            await _cancel(job, cluster)
    open_jobs = [job for job in jobs if not (_is_ended(job) and _is_reported(job))]
    deadline = datetime.fromisoformat(metadata["deletionTimestamp"]) + timedelta(seconds=grace_s) + _REPORTING
    if open_jobs and clock.now() < deadline:
        if is_foreground(worker):
            return f"{len(open_jobs)} of its jobs are ending, until {deadline:%H:%M:%S} UTC. {NOT_DRAINED}"
        return f"{len(open_jobs)} of its jobs are ending; the node notifies schedulers until {deadline:%H:%M:%S} UTC."
    for job in open_jobs:
        _log.warning(
            "%s/%s: the node has not reported the end of this job",
            metadata["namespace"],
            job["metadata"]["name"],
        )
    await cluster.delete(CLUSTER_ROLE_BINDING, None, reviewer_binding(metadata["namespace"], metadata["name"]))
    return None


async def _cancel(job: Manifest, cluster: Cluster) -> None:
    identity = {key: job["metadata"][key] for key in ("name", "namespace", "uid")}
    cancelled = {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": identity}
    try:
        await cluster.apply({**cancelled, "spec": {"cancel": {"reason": REASON}}})
    except Conflict:
        _log.info("%s/%s: gone before it was cancelled", identity["namespace"], identity["name"])


def _is_ended(job: Manifest) -> bool:
    return (job.get("status") or {}).get("phase") in TERMINAL


def _is_reported(job: Manifest) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(condition["type"] == REPORTED and condition["status"] == "True" for condition in conditions)
