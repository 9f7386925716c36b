"""Run the operator: connect its components and keep them running."""

import asyncio
import logging
from typing import Final

import kopf
from kubernetes.aio.client import ApiClient

from hypha_contracts.kubernetes_errors import ApiError
from hypha_operator.jobs.reconciler import JobReconciler
from hypha_operator.machinery.audit import Audit
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster, load_configuration
from hypha_operator.machinery.health import Metrics, problem, serving
from hypha_operator.machinery.kinds import HYPHA_JOB, WATCHED, WORKER, Kind, Manifest
from hypha_operator.machinery.queue import Reconcile, WorkQueue
from hypha_operator.machinery.store import Store
from hypha_operator.machinery.watches import NoMemories, Watches, kopf_registry, kopf_settings, prime
from hypha_operator.settings import Settings
from hypha_operator.workers.reconciler import WorkerReconciler

_PRIMING_RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)


async def run(settings: Settings, namespaces: tuple[str, ...], port: int) -> None:
    """Serve namespaces until SIGTERM, or until a watch fails permanently.

    Args:
        settings: images and names.
        namespaces: the namespaces to serve; empty for the complete cluster.
        port: the port of health and metrics.
    """
    clock, store, metrics = Clock(), Store(), Metrics()
    listed = namespaces or (None,)

    def on_write(kind: Kind, manifest: Manifest) -> None:
        if kind in WATCHED:
            watches.record_write(kind, manifest)

    configuration = await load_configuration()
    async with ApiClient(configuration) as client:
        cluster = Cluster(client, clock, on_write, metrics.on_call)
        reconcile: dict[Kind, Reconcile] = {
            WORKER: WorkerReconciler(store, cluster, clock, settings).reconcile,
            HYPHA_JOB: JobReconciler(store, cluster, clock, settings).reconcile,
        }
        queue = WorkQueue(lambda key: reconcile[key.kind](key), clock, metrics.on_reconcile)
        watches = Watches(store, queue)
        audit = Audit(store, watches, cluster, clock, listed)
        metrics.track(store, queue, audit)
        async with serving(port, metrics, lambda: problem(queue, audit)):
            await _prime(watches, cluster, clock, listed)
            _log.info("serving %s", ", ".join(namespaces) or "all namespaces")
            background = [asyncio.create_task(queue.run()), asyncio.create_task(audit.run())]
            watching = kopf.operator(
                registry=kopf_registry(watches, configuration),
                settings=kopf_settings(),
                memories=NoMemories(),
                clusterwide=not namespaces,
                namespaces=namespaces,
            )
            await _first_ends(asyncio.create_task(watching), *background)


async def _first_ends(*tasks: asyncio.Task[None]) -> None:
    """Wait for one of the tasks to end, then cancel the others; raise the error of a task that failed."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


async def _prime(watches: Watches, cluster: Cluster, clock: Clock, namespaces: tuple[str | None, ...]) -> None:
    """Fill the store with all objects. Retry until the chart's definitions and roles exist."""
    while True:
        try:
            return await prime(watches, cluster, namespaces)
        except ApiError as error:
            _log.warning("%s. Install the chart's CustomResourceDefinitions and roles.", error)
            await clock.sleep(_PRIMING_RETRY_S)
