"""HyphaWorker: observe, apply what differs, classify once, write the status once, then tell what changed."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from hypha_contracts.names import DRAIN_FINALIZER, controller_name, identity_secret
from hypha_contracts.times import DRAIN_S
from hypha_messages.validation import describe
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.conditions import Condition, merged
from hypha_operator.machinery.errors import ApiError, Conflict, NotFound
from hypha_operator.machinery.kinds import CERTIFICATE, DEPLOYMENT, POD, WORKER, Key, Manifest
from hypha_operator.machinery.store import Store
from hypha_operator.settings import Settings
from hypha_operator.workers.children import RefusedError, WorkerChildren
from hypha_operator.workers.conditions import Observed, classify
from hypha_operator.workers.controller import identity_secrets
from hypha_operator.workers.drain import NOT_DRAINED, drain, is_foreground
from hypha_operator.workers.network import with_host_ip
from hypha_resources.worker import HyphaWorkerSpec, NodeStatus

_SETTLED_S: Final = 600.0
_SETTLING_S: Final = 30.0
_DRAINING_S: Final = 2.0
_PLAIN_FIELDS: Final = ("observedGeneration", "peerId", "capacity", "externalAddresses")
"""What the operator writes of the status besides conditions; the rest is the node's."""
_UNTOLD: Final = frozenset({"NotReported", "NoRequests"})
"""Reasons that are no news at all."""
_QUIET: Final = frozenset({"Starting", "Draining"})
"""Reasons that are no news to warn of."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Applied:
    """What came of applying what a worker owns.

    Attributes:
        spec: None if what is written is not a worker.
        addresses: those for peers outside.
        refusal: reason and message of what nothing but a change will cure.
        failure: what is worth another try.
    """

    spec: HyphaWorkerSpec | None
    addresses: list[str] = field(default_factory=list)
    refusal: tuple[str, str] | None = None
    failure: ApiError | None = None


class WorkerReconciler:
    """Makes controllers of HyphaWorkers."""

    def __init__(self, store: Store, cluster: Cluster, clock: Clock, settings: Settings) -> None:
        self._store, self._cluster, self._clock = store, cluster, clock
        self._children = WorkerChildren(store, cluster, clock, settings)
        self._uids: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring what belongs to a worker in line with it; return seconds until the next look."""
        worker = self._store.get(WORKER, key.namespace, key.name)
        if worker is None:
            self._children.forget(self._uids.pop(key, ""))
            return None
        self._uids[key] = worker["metadata"]["uid"]
        deleting = "deletionTimestamp" in worker["metadata"]
        if deleting and DRAIN_FINALIZER not in worker["metadata"].get("finalizers", []):
            return None  # the garbage collector does the rest
        if not deleting:
            await self._hold(worker)
        applied = await self._apply_children(worker, accept_offers=not deleting)
        draining = None
        if deleting:
            if applied.failure:
                _log.warning("%s is drained all the same: %s", key, applied.failure)
            if is_foreground(worker):
                await self._cluster.event(worker, "Warning", "Draining", NOT_DRAINED)
            grace_s = applied.spec.jobs.termination_grace_seconds if applied.spec else DRAIN_S
            draining = await drain(worker, grace_s, self._cluster, self._clock)
            if draining is None:
                return await self._release(worker)
        observed = await self._observe(worker, applied, draining)
        left_s = await self._report(worker, observed, applied.addresses)
        if applied.failure and not deleting:
            raise applied.failure
        return left_s

    async def _hold(self, worker: Manifest) -> None:
        """Have a worker stay until it is drained."""
        if DRAIN_FINALIZER not in worker["metadata"].get("finalizers", []):
            held = _identity(worker)
            held["metadata"]["finalizers"] = [DRAIN_FINALIZER]
            await self._cluster.apply(held)

    async def _release(self, worker: Manifest) -> float | None:
        """Let it go, whoever else put the finalizer there; return seconds until the next try, if one is needed."""
        released = _identity(worker)
        released["metadata"]["resourceVersion"] = worker["metadata"]["resourceVersion"]
        released["metadata"]["finalizers"] = [
            name for name in worker["metadata"]["finalizers"] if name != DRAIN_FINALIZER
        ]
        try:
            await self._cluster.merge(released)
        except Conflict:
            return _DRAINING_S  # somebody changed it meanwhile
        except NotFound:
            return None
        return None

    async def _apply_children(self, worker: Manifest, *, accept_offers: bool) -> _Applied:
        try:
            spec = HyphaWorkerSpec.model_validate(worker["spec"])
        except ValidationError as error:
            problems = describe(error, "spec", prefix="spec.")
            return _Applied(None, refusal=("InvalidSpec", f"{problems}. Correct it; the CRDs may be newer or older."))
        known = (worker.get("status") or {}).get("externalAddresses") or []
        if is_foreground(worker):
            return _Applied(spec, known)  # what is made now is deleted again
        try:
            addresses = await self._children.apply(worker, spec, accept_offers=accept_offers and not spec.suspend)
        except RefusedError as error:
            return _Applied(spec, refusal=(error.reason, str(error)))
        except ApiError as error:
            return _Applied(spec, known, failure=error)
        return _Applied(spec, addresses)

    async def _observe(self, worker: Manifest, applied: _Applied, draining: str | None) -> Observed:
        namespace, name = worker["metadata"]["namespace"], worker["metadata"]["name"]
        status = worker.get("status") or {}
        spec = applied.spec
        issued = spec is not None and spec.identity.issuer_ref is not None
        return Observed(
            name=name,
            namespace=namespace,
            now=self._clock.now(),
            spec=spec,
            refusal=applied.refusal,
            failure=str(applied.failure) if applied.failure else None,
            secrets=identity_secrets(name, spec) if spec else ("", ""),
            certificate=await self._cluster.get(CERTIFICATE, namespace, identity_secret(name)) if issued else None,
            deployment=self._store.get(DEPLOYMENT, namespace, controller_name(name)),
            pod=self._controller_pod(namespace, name),
            node=NodeStatus.model_validate(status.get("node") or {}),
            pinned_peer_id=status.get("peerId"),
            draining=draining,
        )

    def _controller_pod(self, namespace: str, name: str) -> Manifest | None:
        pods = [
            pod
            for pod in self._store.of_worker(POD, namespace, name)
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "controller"
            and "deletionTimestamp" not in pod["metadata"]
        ]
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    async def _report(self, worker: Manifest, observed: Observed, addresses: list[str]) -> float:
        """Write the status if it changed; return seconds until the next look."""
        before: dict[str, Any] = worker.get("status") or {}
        conditions = classify(observed)
        after = _status(worker, observed, conditions, addresses)
        if any(before.get(field) != after.get(field) for field in _PLAIN_FIELDS) or _differ(
            before.get("conditions") or [], after["conditions"]
        ):
            await self._cluster.apply_status({**_identity(worker), "status": after})
            await self._tell(worker, before.get("conditions") or [], conditions)
        if after.get("peerId") != before.get("peerId"):
            return 0.0  # the node is to be told which peer it is
        if observed.draining is not None:
            return _DRAINING_S
        return _SETTLED_S if conditions[0].status else _SETTLING_S

    async def _tell(self, worker: Manifest, before: Sequence[dict[str, Any]], now: Sequence[Condition]) -> None:
        """Post an Event for each condition that came to be something else, but one for one cause."""
        known = {condition["type"]: condition["reason"] for condition in before}
        told = set()
        for condition in now:
            news = known.get(condition.type) != condition.reason and condition.reason not in told
            if condition.type in {"Reconciling", "Stalled"} or not news:
                continue
            told.add(condition.reason)
            calm = condition.reason in _QUIET or (condition.status and condition.reason != "CertificateExpiresSoon")
            if condition.reason not in _UNTOLD:
                type_ = "Normal" if calm else "Warning"
                await self._cluster.event(worker, type_, condition.reason, condition.message)  # type: ignore[arg-type]


def _identity(worker: Manifest) -> Manifest:
    metadata = {key: worker["metadata"][key] for key in ("name", "namespace", "uid")}
    return {"apiVersion": worker["apiVersion"], "kind": worker["kind"], "metadata": metadata}


def _status(
    worker: Manifest, observed: Observed, conditions: Sequence[Condition], addresses: list[str]
) -> dict[str, Any]:
    before = worker.get("status") or {}
    generation = worker["metadata"]["generation"]
    identity = next(condition for condition in conditions if condition.type == "IdentityValid")
    host_ip = ((observed.pod or {}).get("status") or {}).get("hostIP")
    status = {
        "observedGeneration": generation,
        "conditions": merged(before.get("conditions") or [], conditions, generation, observed.now),
        "peerId": observed.node.peer_id if identity.status else observed.pinned_peer_id,
        "capacity": observed.spec.resources.capacity.model_dump() if observed.spec else None,
        "externalAddresses": with_host_ip(addresses, host_ip) or None,
    }
    return {key: value for key, value in status.items() if value is not None}


def _differ(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> bool:
    """Whether conditions of ours say something else now; the node has one of its own among them."""
    known = {condition["type"]: condition for condition in before}
    return any(known.get(condition["type"]) != condition for condition in after)
