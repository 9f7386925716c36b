"""The watches: kopf keeps them, what they show goes into the store, and whom it concerns into the queue."""

import asyncio
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any, Final

import kopf
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes.aio.client import Configuration

from hypha_contracts.names import JOB_LABEL, WORKER_LABEL
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    HYPHA_JOB,
    JOB,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    WORKER,
    Key,
    Kind,
    Manifest,
)
from hypha_operator.machinery.queue import WorkQueue
from hypha_operator.machinery.store import Store
from hypha_resources.job import TERMINAL

CHILDREN: Final = (
    CONFIG_MAP,
    SERVICE_ACCOUNT,
    SERVICE,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    JOB,
    POD,
)
"""Watched where they have the label that says which worker they belong to."""
WATCHED: Final = (WORKER, HYPHA_JOB, *CHILDREN)
SELECTORS: Final[Mapping[Kind, dict[str, str]]] = {
    kind: {"labelSelector": WORKER_LABEL} if kind in CHILDREN else {} for kind in WATCHED
}


class Watches:
    """Takes what is seen of objects, from wherever, and passes on whom it concerns."""

    def __init__(self, store: Store, queue: WorkQueue) -> None:
        self._store, self._queue = store, queue

    def seen(self, kind: Kind, manifest: Manifest) -> None:
        """An object is there, as it is now."""
        metadata = manifest["metadata"]
        known = self._store.get(kind, metadata.get("namespace"), metadata["name"])
        if self._store.put(kind, manifest):
            self._enqueue(kind, manifest, spec_changed=_generation(known) != _generation(manifest))

    def wrote(self, kind: Kind, manifest: Manifest) -> None:
        """An object came back from a write of ours, and with it what others changed before: of that no watch tells."""
        metadata = manifest["metadata"]
        known = self._store.get(kind, metadata.get("namespace"), metadata["name"])
        news = kind in (WORKER, HYPHA_JOB) and _of_others(known) != _of_others(manifest)
        if self._store.put(kind, manifest) and news:
            self._enqueue(kind, manifest, spec_changed=_generation(known) != _generation(manifest))

    def gone(self, kind: Kind, manifest: Manifest) -> None:
        """An object is there no more, or has lost the label by which it is watched."""
        if self._store.remove(kind, manifest):
            self._enqueue(kind, manifest, spec_changed=True)

    def _enqueue(self, kind: Kind, manifest: Manifest, *, spec_changed: bool) -> None:
        for key in self._concerned(kind, manifest, spec_changed=spec_changed):
            self._queue.add(key)

    def _concerned(self, kind: Kind, manifest: Manifest, *, spec_changed: bool) -> Iterable[Key]:
        metadata = manifest["metadata"]
        namespace, labels = metadata["namespace"], metadata.get("labels") or {}
        worker, job = labels.get(WORKER_LABEL), labels.get(JOB_LABEL)
        if kind == WORKER:
            yield Key(WORKER, namespace, metadata["name"])
            if spec_changed:
                yield from self._jobs_of(namespace, metadata["name"])
        elif kind == HYPHA_JOB:
            yield Key(HYPHA_JOB, namespace, metadata["name"])
            if worker and self._is_deleted(namespace, worker):
                yield Key(WORKER, namespace, worker)
        elif job:
            yield Key(HYPHA_JOB, namespace, job)
        elif worker:
            yield Key(WORKER, namespace, worker)

    def _jobs_of(self, namespace: str, worker: str) -> Iterable[Key]:
        for job in self._store.of_worker(HYPHA_JOB, namespace, worker):
            if (job.get("status") or {}).get("phase") not in TERMINAL:
                yield Key(HYPHA_JOB, namespace, job["metadata"]["name"])

    def _is_deleted(self, namespace: str, worker: str) -> bool:
        owner = self._store.get(WORKER, namespace, worker)
        return owner is not None and "deletionTimestamp" in owner["metadata"]


def _generation(manifest: Manifest | None) -> tuple[Any, Any]:
    metadata = (manifest or {}).get("metadata", {})
    return metadata.get("generation"), metadata.get("deletionTimestamp")


def _of_others(manifest: Manifest | None) -> tuple[Any, Any]:
    """What the operator's writes of a status do not change: what it asks for, and what its node says."""
    return _generation(manifest), ((manifest or {}).get("status") or {}).get("node")


async def prime(watches: Watches, cluster: Cluster, namespaces: Iterable[str | None]) -> None:
    """Take in all there is, so that nothing is decided by half of it.

    Raises:
        ApiError: it cannot be listed, since the definitions or the operator's roles are missing, say.
    """
    for kind, namespace in product(WATCHED, namespaces):
        async for page in cluster.pages(kind, namespace, SELECTORS[kind]):
            for manifest in page:
                watches.seen(kind, manifest)
            await asyncio.sleep(0)


def kopf_registry(watches: Watches, configuration: Configuration) -> kopf.OperatorRegistry:
    """Return kopf's handlers: events only, which store nothing on objects and put no finalizer there."""

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
    for kind in WATCHED:
        kopf.on.event(kind.api_version, kind.plural, id=kind.plural, registry=handlers)(_handler(watches, kind))
    return handlers


def _handler(watches: Watches, kind: Kind) -> Any:
    async def handle(event: kopf.RawEvent, **_: Any) -> None:
        manifest: Manifest = {"apiVersion": kind.api_version, "kind": kind.name, **dict(event["object"])}
        if event["type"] == "DELETED":
            watches.gone(kind, manifest)
        else:
            watches.seen(kind, manifest)

    return handle


class Forgetful(ResourceMemories):
    """What kopf remembers of each object: nothing, since handlers of events need nothing of it."""

    async def recall(self, *_: Any, **__: Any) -> ResourceMemory:
        """Return a memory as of an object that was never seen."""
        return ResourceMemory()


class _NoDiffs(kopf.DiffBaseStorage):
    """Spares a copy of each object that comes: no handler asks what has changed."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        raise NotImplementedError("kopf has no handler for whose sake it would store anything")


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: watches that notice silence, and nothing that writes to the cluster."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = True
    chosen.watching.server_timeout = 270
    chosen.watching.client_timeout = 300
    chosen.watching.connect_timeout = 10
    chosen.watching.inactivity_timeout = 75
    chosen.watching.chunk_size = 100  # of each kind, all at once
    chosen.networking.request_timeout = 60
    chosen.networking.connect_timeout = 10
    chosen.queueing.idle_timeout = 0.01  # one task for each object that comes, which keeps the object
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.process.ultimate_exiting_timeout = 20
    for kind in CHILDREN:
        chosen.watching.label_selectors[kind.api_version, kind.plural] = WORKER_LABEL
    return chosen
