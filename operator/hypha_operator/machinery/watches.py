"""The watches, which kopf runs. Each change goes into the store, and the affected keys go into the queue."""

import asyncio
import logging
import signal
from collections.abc import Iterable
from itertools import product
from typing import Any

import kopf
from kopf._cogs.clients.errors import APINotFoundError
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes.aio.client import Configuration

from hypha_contracts.kinds import HYPHA_JOB, WORKER, Kind, Manifest
from hypha_contracts.names import DRAIN_FINALIZER, JOB_LABEL, WORKER_LABEL
from hypha_contracts.object_status import TERMINAL, is_open
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.kinds import CHILDREN, KNOWN, LISTED, SELECTORS, Key
from hypha_operator.machinery.queue import WorkQueue
from hypha_operator.machinery.store import Store

_log = logging.getLogger(__name__)


class Watches:
    """Records observed changes of objects, and enqueues the keys that they affect."""

    def __init__(self, store: Store, queue: WorkQueue) -> None:
        self._store, self._queue = store, queue

    def record(self, kind: Kind, manifest: Manifest) -> None:
        """Record the current version of an object."""
        known = self._known(kind, manifest) if kind == WORKER else None  # only a worker's generation matters
        if self._store.put(kind, manifest):
            self._enqueue(kind, manifest, spec_changed=_generation(known) != _generation(manifest))

    def record_write(self, kind: Kind, manifest: Manifest) -> None:
        """Record an object returned by one of the operator's writes.

        It may include earlier changes by other clients for which no watch event will follow.
        """
        if kind in (WORKER, HYPHA_JOB) and _by_others(self._known(kind, manifest)) != _by_others(manifest):
            self.record(kind, manifest)
        else:
            self._store.put(kind, manifest)

    def record_deletion(self, kind: Kind, manifest: Manifest) -> None:
        """Record that an object was deleted, or lost the label that its watch selects."""
        if self._store.remove(kind, manifest):
            self._enqueue(kind, manifest, spec_changed=True)

    def _known(self, kind: Kind, manifest: Manifest) -> Manifest | None:
        """Return the version of an object in the store, which costs more than to store another one."""
        metadata = manifest["metadata"]
        return self._store.get(kind, metadata.get("namespace"), metadata["name"])

    def _enqueue(self, kind: Kind, manifest: Manifest, *, spec_changed: bool) -> None:
        for key in self._affected(kind, manifest, spec_changed=spec_changed):
            self._queue.add(key)

    def _affected(self, kind: Kind, manifest: Manifest, *, spec_changed: bool) -> Iterable[Key]:
        metadata = manifest["metadata"]
        namespace, labels = metadata["namespace"], metadata.get("labels") or {}
        worker, job = labels.get(WORKER_LABEL), labels.get(JOB_LABEL)
        if kind == WORKER:
            yield Key(WORKER, namespace, metadata["name"])
            if spec_changed:
                yield from self._jobs_of(namespace, metadata["name"])
        elif kind == HYPHA_JOB:
            yield Key(HYPHA_JOB, namespace, metadata["name"])
            if worker and self._concerns_drain(manifest, namespace, worker):
                yield Key(WORKER, namespace, worker)
        elif job:
            yield Key(HYPHA_JOB, namespace, job)
        elif worker:
            yield Key(WORKER, namespace, worker)

    def _jobs_of(self, namespace: str, worker: str) -> Iterable[Key]:
        for job in self._store.of_worker(HYPHA_JOB, namespace, worker):
            if (job.get("status") or {}).get("phase") not in TERMINAL:
                yield Key(HYPHA_JOB, namespace, job["metadata"]["name"])

    def _concerns_drain(self, job: Manifest, namespace: str, name: str) -> bool:
        """Whether the drain of a job's worker may go on, or its finalizer has to be added or removed."""
        worker = self._store.get(WORKER, namespace, name)
        if worker is None:
            return False
        open_ = is_open(job) and self._store.version(HYPHA_JOB, namespace, job["metadata"]["name"]) is not None
        held = DRAIN_FINALIZER in worker["metadata"].get("finalizers", [])
        return "deletionTimestamp" in worker["metadata"] or open_ != held


def _generation(manifest: Manifest | None) -> tuple[Any, Any]:
    metadata = (manifest or {}).get("metadata", {})
    return metadata.get("generation"), metadata.get("deletionTimestamp")


def _by_others(manifest: Manifest | None) -> tuple[Any, Any]:
    """Return the parts that the operator's status writes do not change: the generation and the node's status."""
    return _generation(manifest), ((manifest or {}).get("status") or {}).get("node")


async def prime(watches: Watches, cluster: Cluster, namespaces: Iterable[str | None]) -> None:
    """List all objects before the first reconcile, so that no decision rests on an incomplete store.

    Raises:
        ApiError: a list failed, for example because the operator's roles are missing.
    """
    for kind, namespace in product(KNOWN, namespaces):
        async for page in cluster.pages(kind, namespace, SELECTORS[kind]):
            for manifest in page:
                watches.record(kind, manifest)
            await asyncio.sleep(0)


def kopf_registry(watches: Watches, configuration: Configuration) -> kopf.OperatorRegistry:
    """Return kopf's handlers. They handle events only, so kopf adds neither annotations nor finalizers to objects."""

    async def login(**_context: Any) -> kopf.ConnectionInfo:
        key = await configuration.get_api_key_with_prefix("BearerToken")
        scheme, _, token = (key or "").rpartition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )

    handlers = kopf.OperatorRegistry()
    kopf.on.login(registry=handlers)(login)
    for kind in KNOWN:
        if kind not in LISTED:
            kopf.on.event(kind.api_version, kind.plural, id=kind.plural, registry=handlers)(_handler(watches, kind))
    return handlers


def _handler(watches: Watches, kind: Kind) -> Any:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        manifest: Manifest = {"apiVersion": kind.api_version, "kind": kind.name, **dict(event["object"])}
        if event["type"] == "DELETED":
            watches.record_deletion(kind, manifest)
        else:
            watches.record(kind, manifest)
        _forget(event["object"])

    return handle


def _forget(object_: Any) -> None:
    """Remove most of an object that kopf has shown.

    kopf's view of it refers to itself, so it would stay in memory until Python searches for garbage in cycles. The
    search for several hundred objects of each event would take a tenth of the operator's time.
    """
    object_["metadata"].pop("managedFields", None)
    for part in object_.keys() - {"metadata"}:
        del object_[part]


class NoMemories(ResourceMemories):
    """Prevents kopf from keeping memory of each object. Handlers of events need none."""

    async def recall(self, *_: Any, **__: Any) -> ResourceMemory:
        """Return a new, empty memory."""
        return ResourceMemory()


class _NoDiffs(kopf.DiffBaseStorage):
    """Prevents kopf from keeping a copy of each object. No handler compares versions."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("handlers of events store nothing")


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watches detect silent connections, and kopf never writes to the cluster."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.watching.server_timeout = 270
    chosen.watching.client_timeout = 300
    chosen.watching.connect_timeout = 10
    chosen.watching.inactivity_timeout = 75
    chosen.watching.chunk_size = 100  # kopf lists all kinds at the same time
    chosen.networking.request_timeout = 60
    chosen.networking.connect_timeout = 10
    chosen.queueing.idle_timeout = 0.01  # until then, a task keeps the object in memory
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.process.ultimate_exiting_timeout = 20
    for kind in CHILDREN:
        chosen.watching.label_selectors[kind.api_version, kind.plural] = WORKER_LABEL
    return chosen


async def start_watches(
    watches: Watches, configuration: Configuration, namespaces: tuple[str, ...], stopped: asyncio.Event
) -> asyncio.Task[None]:
    """Start the watches and return the task that runs them. SIGTERM and SIGINT set the event from now on.

    The task ends with an error if a watch fails permanently, and without one if the API server ceases to serve a kind.
    """
    started = asyncio.Event()
    operator = kopf.operator(
        registry=kopf_registry(watches, configuration),
        settings=kopf_settings(),
        memories=NoMemories(),
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=started,
    )

    async def watch() -> None:
        try:
            await operator
        except APINotFoundError as error:
            _log.warning("a watched kind is not served any more: %s", error)

    watching, starting = asyncio.create_task(watch()), asyncio.create_task(started.wait())
    await asyncio.wait({watching, starting}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    for stop in (signal.SIGTERM, signal.SIGINT):  # kopf's own handlers would end the watches before the rest
        asyncio.get_running_loop().add_signal_handler(stop, stopped.set)
    return watching
