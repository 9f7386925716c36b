"""Run the operator: connect its components and keep them running."""

import asyncio
import gc
import logging
import os
from dataclasses import replace
from importlib.metadata import version
from typing import Final

from hypha_contracts.kinds import HYPHA_JOB, WORKER, Kind, Manifest
from hypha_contracts.kubernetes_errors import ApiError
from hypha_contracts.object_status import TERMINAL
from hypha_contracts.reasons import WorkerReason
from hypha_operator.jobs.reconciler import JobReconciler
from hypha_operator.jobs.refused_pods import RefusedPods
from hypha_operator.machinery.audit import Audit
from hypha_operator.machinery.claims import Claims
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster, load_configuration, open_client
from hypha_operator.machinery.election import CALL_S, UNINSTALLER, Election, lease_place
from hypha_operator.machinery.health import Health, Metrics, serving
from hypha_operator.machinery.kinds import KNOWN, Key
from hypha_operator.machinery.queue import Reconcile, WorkQueue
from hypha_operator.machinery.store import Store
from hypha_operator.machinery.tasks import first_ends
from hypha_operator.machinery.watches import Watches, prime, start_watches
from hypha_operator.settings import Settings
from hypha_operator.workers.reconciler import WorkerReconciler
from hypha_operator.workers.uninstall import uninstall
from hypha_telemetry.settings import read_settings
from hypha_telemetry.start import Exports, exporting

_PRIMING_RETRY_S: Final = 5.0
_SERVED_BY_OTHER_S: Final = 60.0
"""How often to look whether another release still serves a namespace."""

_COLLECT_AFTER: Final = 50_000
"""The number of new objects after which Python looks for garbage in cycles. A change of a pod makes several hundred
objects, none in a cycle, so that with Python's default of 700 the search takes a tenth of the operator's time."""

_log = logging.getLogger(__name__)


async def run(settings: Settings, release: str, namespaces: tuple[str, ...], port: int) -> None:
    """Serve namespaces until SIGTERM, or until a watch fails permanently.

    Args:
        settings: images and names.
        release: the release of the operator, as `<namespace>/<name>`. Its replicas elect one that reconciles.
        namespaces: the namespaces to serve; empty for the complete cluster.
        port: the port of health and metrics.
    """
    exported = replace(read_settings(os.environ), prometheus=(None, port))
    with exporting(exported, {"service.name": "hypha-operator"}, version("hypha-worker")) as exports:
        await _run(settings, release, namespaces, port, exports)


async def run_uninstall(release: str, namespaces: tuple[str, ...]) -> None:
    """Prepare the removal of a release, as `uninstall` does."""
    async with open_client(await load_configuration(), UNINSTALLER) as client:
        clock = Clock()
        await uninstall(Cluster(client, clock, lambda *_: None), clock, release, namespaces)


async def _run(settings: Settings, release: str, namespaces: tuple[str, ...], port: int, exports: Exports) -> None:
    clock, store, metrics = Clock(), Store(), Metrics(exports.meter)
    listed = namespaces or (None,)

    def on_write(kind: Kind, manifest: Manifest) -> None:
        if kind in KNOWN:
            watches.record_write(kind, manifest)

    def on_start(worker: Key) -> None:
        queue.add(worker)

    configuration = await load_configuration()
    async with open_client(configuration, settings.replica) as client:
        calls = Cluster(client, clock, lambda *_: None, metrics.on_call, attempts=1, attempt_s=CALL_S)
        election = Election(calls, clock, lease_place(namespaces), release, settings.replica)
        cluster = Cluster(client, clock, on_write, metrics.on_call, writes_until_s=election.leads_until_s)
        claims = Claims(cluster, clock, store, release, listed)
        reconcile: dict[Kind, Reconcile] = {}

        async def reconcile_own(key: Key) -> float | None:
            """Reconcile an object, unless another release serves its namespace."""
            object_ = store.get(key.kind, key.namespace, key.name)
            if object_ and (rival := await claims.rival(key.namespace)):
                _log.warning("%s: %s", key, rival)
                if key.kind == WORKER:
                    await cluster.event(object_, "Warning", WorkerReason.SERVED_BY_OTHER, rival)
                return _SERVED_BY_OTHER_S
            left_s = await reconcile[key.kind](key)
            if key.kind == WORKER and object_ is None:
                await claims.release_unused(key.namespace)
            return left_s

        queue = WorkQueue(reconcile_own, clock, metrics.on_reconcile)
        watches = Watches(store, queue)
        audit = Audit(store, watches, cluster, clock, listed)
        metrics.track(store, queue, audit, election)
        health = Health(queue, audit, election)

        async def lead() -> None:
            """Reconcile everything, without anything remembered from an earlier term."""
            refused_pods = RefusedPods(cluster, clock)
            reconcile[WORKER] = WorkerReconciler(store, cluster, clock, settings, refused_pods).reconcile
            jobs = JobReconciler(store, cluster, clock, settings, refused_pods, on_start=on_start)
            reconcile[HYPHA_JOB] = jobs.reconcile
            await first_ends(queue.run(_backlog(store)), claims.run())

        async with serving(port, exports.page, health):
            await _prime(watches, cluster, clock, listed, health)
            gc.freeze()
            gc.set_threshold(_COLLECT_AFTER)
            _log.info("serving %s", ", ".join(namespaces) or "all namespaces")
            stopped = asyncio.Event()
            watching = await start_watches(watches, configuration, namespaces, stopped)
            rest = (audit.run(), watching, _is_set(stopped), _until_served(cluster, clock, health))
            await first_ends(election.run(lead), *rest)


def _backlog(store: Store) -> list[Key]:
    """Return all objects in the order in which a new leader reconciles them: jobs that wait for their pod go first."""
    jobs: dict[bool, list[Key]] = {True: [], False: []}
    ended: list[Key] = []
    for namespace, name, _ in store.places(HYPHA_JOB):
        phase = ((store.get(HYPHA_JOB, namespace, name) or {}).get("status") or {}).get("phase")
        (ended if phase in TERMINAL else jobs[phase is None]).append(Key(HYPHA_JOB, namespace or "", name))
    workers = [Key(WORKER, namespace or "", name) for namespace, name, _ in store.places(WORKER)]
    return [*jobs[True], *workers, *jobs[False], *ended]


async def _prime(
    watches: Watches, cluster: Cluster, clock: Clock, namespaces: tuple[str | None, ...], health: Health
) -> None:
    """Fill the store with all objects. Retry until the chart's roles exist."""
    while True:
        try:
            health.missing = await cluster.missing()
            await prime(watches, cluster, namespaces)
        except ApiError as error:
            health.not_listed = str(error)
            _log.warning("%s. Install the chart's roles.", error)
            await clock.sleep(_PRIMING_RETRY_S)
        else:
            health.not_listed = None
            return


async def _until_served(cluster: Cluster, clock: Clock, health: Health) -> None:
    """Return once the API server serves a resource that it did not serve at the start. Only a restart watches it."""
    missing = health.missing
    if not missing:
        await asyncio.Event().wait()
    _log.warning("the API server does not serve %s. Install the chart's definitions.", ", ".join(missing))
    while health.missing == missing:
        await clock.sleep(_PRIMING_RETRY_S)
        try:
            health.missing = await cluster.missing()
        except ApiError as error:
            _log.warning("%s", error)
    _log.info("the API server serves other resources than before; starting again")


async def _is_set(event: asyncio.Event) -> None:
    await event.wait()
