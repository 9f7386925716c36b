"""Run the operator: connect its components and keep them running."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

import kopf

from hypha_contracts.kubernetes_errors import ApiError
from hypha_operator.jobs.reconciler import JobReconciler
from hypha_operator.machinery.audit import Audit
from hypha_operator.machinery.clock import Clock, SystemClock
from hypha_operator.machinery.cluster import Cluster, load_configuration, open_cluster
from hypha_operator.machinery.health import Metrics, problem, serving
from hypha_operator.machinery.kinds import HYPHA_JOB, WORKER, Key, Kind, Manifest
from hypha_operator.machinery.queue import WorkQueue
from hypha_operator.machinery.reconciler import Reconciler
from hypha_operator.machinery.store import Store
from hypha_operator.machinery.watches import WATCHED, NoMemories, Watches, kopf_registry, kopf_settings, prime
from hypha_operator.settings import Settings
from hypha_operator.workers.reconciler import WorkerReconciler

_PRIMING_RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)


class KindReconciler:
    """Passes each key to the reconciler of its kind."""

    def __init__(self, reconcilers: Mapping[Kind, Reconciler]) -> None:
        self._reconcilers = reconcilers

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile a key."""
        return await self._reconcilers[key.kind].reconcile(key)


async def run(settings: Settings, namespaces: tuple[str, ...], port: int) -> None:
    """Serve namespaces until SIGTERM, or until a watch fails permanently.

    Args:
        settings: images and names.
        namespaces: the namespaces to serve; empty for the complete cluster.
        port: the port of health and metrics.
    """
    clock, store, metrics = SystemClock(), Store(), Metrics()

    def on_write(kind: Kind, manifest: Manifest) -> None:
        if kind in WATCHED:
            watches.record_write(kind, manifest)

    configuration = await load_configuration()
    async with open_cluster(configuration, clock, on_write, metrics.on_call) as cluster:
        reconcilers: dict[Kind, Reconciler] = {
            WORKER: WorkerReconciler(store, cluster, clock, settings),
            HYPHA_JOB: JobReconciler(store, cluster, clock, settings),
        }
        queue = WorkQueue(KindReconciler(reconcilers), clock, on_reconcile=metrics.on_reconcile)
        watches = Watches(store, queue)
        audit = Audit(store, watches, cluster, clock, namespaces or (None,))
        metrics.track(store, queue, audit)
        async with serving(port, metrics, lambda: problem(queue, audit)):
            await _primed(watches, cluster, clock, namespaces or (None,))
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


async def _primed(watches: Watches, cluster: Cluster, clock: Clock, namespaces: tuple[str | None, ...]) -> None:
    """Return once all objects are known. This waits for the chart's definitions and roles."""
    while True:
        try:
            return await prime(watches, cluster, namespaces)
        except ApiError as error:
            _log.warning("%s; install the chart's CustomResourceDefinitions and roles", error)
            await clock.sleep(_PRIMING_RETRY_S)
