"""The operator's reconcilers on a real API server, driven step by step by a test."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config

from hypha_contracts.kinds import HYPHA_JOB, WORKER, Kind, Manifest
from hypha_contracts.names import WORKER_LABEL
from hypha_operator.jobs.reconciler import JobReconciler
from hypha_operator.jobs.refused_pods import RefusedPods
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.kinds import CHILDREN, KNOWN, Key
from hypha_operator.machinery.store import Store
from hypha_operator.machinery.watches import Watches
from hypha_operator.settings import Settings
from hypha_operator.workers.reconciler import WorkerReconciler

SETTINGS = Settings("worker:1", "bridge:1", "trainer:1", "parameter-server:1")
MAX_ROUNDS = 20
_SELECTORS = {kind: {"label_selector": WORKER_LABEL} if kind in CHILDREN else {} for kind in KNOWN}


class KilledError(BaseException):
    """The operator's process is killed here."""


class RecordingCluster(Cluster):
    """A `Cluster` that records its writes, and can kill the operator at a write.

    Attributes:
        writes: method and path of each write so far.
        checks: the path of each dry run so far.
        kill_at: the number of the write, the first being 1, before which the operator is killed.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.writes: list[str] = []
        self.checks: list[str] = []
        self.kill_at: int | None = None

    async def _once(self, method: str, path: str, query: dict[str, str] | None, *arguments: Any) -> Manifest:
        if "dryRun" in (query or {}):
            self.checks.append(path)
        elif method != "GET":
            self.writes.append(f"{method} {path}")
            if len(self.writes) == self.kill_at:
                raise KilledError
        return await super()._once(method, path, query, *arguments)


class Pending:
    """Replaces the queue: keeps keys until a test reconciles them."""

    def __init__(self) -> None:
        self.keys: dict[Key, None] = {}

    def add(self, key: Key, after_s: float = 0.0) -> None:
        if after_s <= 0:
            self.keys[key] = None


class Operating:
    """One process of the operator in one namespace."""

    def __init__(
        self, cluster: RecordingCluster, store: Store, namespace: str, clock: Clock, settings: Settings = SETTINGS
    ) -> None:
        self.cluster, self.store, self.namespace = cluster, store, namespace
        self.pending = Pending()
        self.watches = Watches(store, self.pending)  # type: ignore[arg-type]
        refused_pods = RefusedPods(cluster, clock)
        self.reconcilers: dict[Kind, WorkerReconciler | JobReconciler] = {
            WORKER: WorkerReconciler(store, cluster, clock, settings, refused_pods),
            HYPHA_JOB: JobReconciler(store, cluster, clock, settings, refused_pods, on_start=self.pending.add),
        }

    async def observe(self) -> None:
        """List all objects, and record changes and deletions."""
        for kind in KNOWN:
            found = await self.cluster.find(kind, self.namespace, **_SELECTORS[kind])
            for manifest in found:
                self.watches.record(kind, manifest)
            there = {manifest["metadata"]["uid"] for manifest in found}
            for namespace, name, uid in list(self.store.places(kind)):
                if uid not in there and (gone := self.store.get(kind, namespace, name)):
                    self.watches.record_deletion(kind, gone)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one object once."""
        return await self.reconcilers[key.kind].reconcile(key)

    async def settle(self) -> int:
        """List and reconcile until no key is pending. Return the number of writes."""
        before = len(self.cluster.writes)
        for _ in range(MAX_ROUNDS):
            await self.observe()
            keys, self.pending.keys = self.pending.keys, {}
            if not keys:
                return len(self.cluster.writes) - before
            for key in keys:
                after_s = await self.reconcile(key)
                self.pending.add(key, 1 if after_s is None else after_s)
        raise AssertionError(f"it does not settle: {self.cluster.writes[-10:]}")

    async def reconcile_all(self) -> int:
        """Reconcile every object once, then settle. Return the number of writes."""
        for kind in (WORKER, HYPHA_JOB):
            for namespace, name, _ in self.store.places(kind):
                self.pending.add(Key(kind, namespace or "", name))
        return await self.settle()

    async def objects(self) -> dict[str, Any]:
        """Return all objects of the operator in the namespace, without fields that differ from run to run."""
        found = {}
        for kind in KNOWN:
            for manifest in await self.cluster.find(kind, self.namespace, label_selector="hypha.space/worker"):
                found[f"{kind.name} {manifest['metadata']['name']}".replace(self.namespace, "NS")] = manifest
        for manifest in await self.cluster.find(WORKER, self.namespace):
            found[f"HyphaWorker {manifest['metadata']['name']}"] = manifest
        return {name: _stable(manifest, self.namespace) for name, manifest in found.items()}


def _stable(manifest: Any, namespace: str) -> Any:
    """Return a value without the fields that differ from run to run, such as times and uids."""
    if isinstance(manifest, dict):
        fleeting = {"creationTimestamp", "lastTransitionTime", "managedFields", "resourceVersion", "uid", "deadline"}
        fleeting |= {"clusterIP", "clusterIPs", "startTime", "completionTime", "deletionTimestamp", "generation"}
        fleeting |= {"startingSince"}
        fleeting |= {"observedGeneration", "hypha.space/applied", "hypha.space/config", "jobId", "id", "nodePort"}
        return {key: _stable(value, namespace) for key, value in manifest.items() if key not in fleeting}
    if isinstance(manifest, list):
        return [_stable(item, namespace) for item in manifest]
    if isinstance(manifest, str):
        text = re.sub(r"(/tcp/|\bport = )3[0-9]{4}", r"\1NODEPORT", manifest.replace(namespace, "NS"))
        return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    return manifest


@asynccontextmanager
async def operating(
    kubeconfig: Path,
    namespace: str,
    clock: Clock | None = None,
    *,
    knows: Callable[[Kind], bool] = lambda _: True,
    settings: Settings = SETTINGS,
) -> AsyncIterator[Operating]:
    """Start an operator with an empty store. `knows` selects the kinds whose writes it records immediately."""
    clock = clock or Clock()
    configuration = Configuration()
    await load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    store = Store()

    def on_write(kind: Kind, manifest: Manifest) -> None:
        if kind in KNOWN and knows(kind):
            operator.watches.record_write(kind, manifest)

    async with ApiClient(configuration) as client:
        operator = Operating(RecordingCluster(client, clock, on_write), store, namespace, clock, settings)
        yield operator
