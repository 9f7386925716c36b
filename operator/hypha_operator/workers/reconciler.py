"""Reconcile a HyphaWorker: apply its children, observe, classify, write the status once, post Events."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from hypha_contracts.kinds import CERTIFICATE, DEPLOYMENT, HYPHA_JOB, POD, WORKER, Manifest
from hypha_contracts.kubernetes_errors import ApiError
from hypha_contracts.names import DRAIN_FINALIZER, controller_name, identity_secret
from hypha_contracts.object_status import find_condition
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.times import DRAIN_S
from hypha_messages.validation import describe
from hypha_operator.jobs.refused_pods import RefusedPods
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.conditions import Condition, differs, merged
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.manifests import identity_of
from hypha_operator.machinery.store import Store
from hypha_operator.offers.observer import OfferObserver, Offers, as_before, none_of
from hypha_operator.settings import Settings
from hypha_operator.workers.children import RefusedError, WorkerChildren
from hypha_operator.workers.conditions import ObservedWorker, classify
from hypha_operator.workers.controller import identity_secrets
from hypha_operator.workers.drain import NOT_DRAINED, drain, hold, is_foreground, release
from hypha_operator.workers.network import with_host_ips
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_status import NodeStatus

_SETTLED_S: Final = 600.0
_SETTLING_S: Final = 30.0
_DRAINING_S: Final = 2.0
_FIELDS: Final = ("observedGeneration", "peerId", "capacity", "externalAddresses", "offering")
"""Fields of the status, besides conditions, that the operator writes. The node writes the others."""
_WITHOUT_EVENT: Final = frozenset(
    {
        WorkerReason.NOT_REPORTED,
        WorkerReason.NOT_OBSERVED,
        WorkerReason.NO_REQUESTS,
        WorkerReason.NOT_VALIDATED,
        WorkerReason.VALIDATED,
        WorkerReason.NOT_TRIED,
        WorkerReason.JOBS_START,
    }
)
_NORMAL: Final = frozenset({WorkerReason.STARTING, WorkerReason.DRAINING})
"""Reasons of conditions that are not True but do not deserve a warning."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Applied:
    """The outcome of applying a worker's children.

    Attributes:
        spec: the specification, or None if it is invalid.
        addresses: the addresses for peers outside the cluster.
        refusal: the reason and message of an error that persists until somebody changes something.
        failure: an error after which the operator tries again.
    """

    spec: HyphaWorkerSpec | None
    addresses: list[str] = field(default_factory=list)
    refusal: tuple[WorkerReason, str] | None = None
    failure: ApiError | None = None


class WorkerReconciler:
    """Creates a controller for each HyphaWorker."""

    def __init__(
        self, store: Store, cluster: Cluster, clock: Clock, settings: Settings, refused_pods: RefusedPods
    ) -> None:
        self._store, self._cluster, self._clock = store, cluster, clock
        self._children = WorkerChildren(store, cluster, clock, settings)
        self._offers = OfferObserver(store, cluster, clock, settings, refused_pods)
        self._uids: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Bring a worker's children in line with it; return seconds until the next reconcile."""
        worker = self._store.get(WORKER, key.namespace, key.name)
        if worker is None:
            uid = self._uids.pop(key, "")
            self._children.release(uid)
            self._offers.release(uid)
            return None
        self._uids[key] = worker["metadata"]["uid"]
        deleting = "deletionTimestamp" in worker["metadata"]
        if deleting and DRAIN_FINALIZER not in worker["metadata"].get("finalizers", []):
            return None  # the garbage collector deletes the children
        if not deleting:
            await hold(worker, self._store.of_worker(HYPHA_JOB, key.namespace, key.name), self._cluster)
        applied = await self._apply_children(worker)
        draining = None
        if deleting:
            if applied.failure:
                _log.warning("%s: draining although its children could not be updated: %s", key, applied.failure)
            if is_foreground(worker):
                await self._cluster.event(worker, "Warning", WorkerReason.DRAINING, NOT_DRAINED)
            grace_s = applied.spec.jobs.termination_grace_seconds if applied.spec else DRAIN_S
            draining = await drain(worker, grace_s, self._cluster, self._clock)
            if draining is None:
                return None if await release(worker, self._cluster) else _DRAINING_S
        offers = await self._offers_of(worker, applied, deleting=deleting)
        observed = await self._observe(worker, applied, offers, draining)
        left_s = await self._report(worker, observed, applied.addresses, offers)
        if applied.failure and not deleting:
            raise applied.failure
        return min(left_s, self._children.retry_s(worker["metadata"]["uid"]))

    async def _offers_of(self, worker: Manifest, applied: _Applied, *, deleting: bool) -> Offers:
        """Return what the worker may sell. A refused child does not concern that, but jobs need a valid spec."""
        if applied.spec is None:
            return none_of(as_before(worker))
        if deleting or applied.failure:
            return as_before(worker)
        return await self._offers.observe(worker, applied.spec)

    async def _apply_children(self, worker: Manifest) -> _Applied:
        try:
            spec = HyphaWorkerSpec.model_validate(worker["spec"])
        except ValidationError as error:
            message = f"{describe(error, 'spec', prefix='spec.')}. {WorkerReason.INVALID_SPEC.remedy}"
            return _Applied(None, refusal=(WorkerReason.INVALID_SPEC, message))
        known = (worker.get("status") or {}).get("externalAddresses") or []
        if is_foreground(worker):
            return _Applied(spec, known)  # the garbage collector would delete new children
        try:
            addresses = await self._children.apply(worker, spec)
        except RefusedError as error:
            return _Applied(spec, refusal=(error.reason, str(error)))
        except ApiError as error:
            return _Applied(spec, known, failure=error)
        return _Applied(spec, addresses)

    async def _observe(
        self, worker: Manifest, applied: _Applied, offers: Offers, draining: str | None
    ) -> ObservedWorker:
        namespace, name = worker["metadata"]["namespace"], worker["metadata"]["name"]
        status = worker.get("status") or {}
        spec = applied.spec
        issued = spec is not None and spec.identity.issuer_ref is not None and applied.refusal is None
        return ObservedWorker(
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
            executors_valid=offers.valid,
            jobs_start=offers.start,
        )

    def _controller_pod(self, namespace: str, name: str) -> Manifest | None:
        pods = [
            pod
            for pod in self._store.of_worker(POD, namespace, name)
            if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "controller"
            and "deletionTimestamp" not in pod["metadata"]
        ]
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    async def _report(self, worker: Manifest, observed: ObservedWorker, addresses: list[str], offers: Offers) -> float:
        """Write the status if it changed; return seconds until the next reconcile."""
        conditions = classify(observed)
        status = _status(worker, observed, conditions, addresses, offers)
        if differs(worker, status, _FIELDS):
            await self._cluster.apply_status({**identity_of(worker), "status": status})
            await self._post_events(worker, conditions)
        if status.get("peerId") != observed.pinned_peer_id:
            return 0.0  # put the peer id into the node's configuration
        if observed.draining is not None:
            return _DRAINING_S
        return min(offers.next_s, _SETTLED_S if conditions[0].status else _SETTLING_S)

    async def _post_events(self, worker: Manifest, conditions: Sequence[Condition]) -> None:
        """Post an Event for each condition whose reason changed. Conditions with the same reason share one Event.

        A condition of a new worker that becomes True causes no Event, except Ready.
        """
        posted: set[str] = set(_WITHOUT_EVENT)
        for condition in conditions:
            before = find_condition(worker, condition.type)
            changed = before.get("reason") != condition.reason
            if condition.type in {"Reconciling", "Stalled"} or not changed or condition.reason in posted:
                continue
            soon = condition.reason == WorkerReason.CERTIFICATE_EXPIRES_SOON
            normal = condition.reason in _NORMAL or (condition.status and not soon)
            if normal and before.get("status", "Unknown") == "Unknown":
                continue
            posted.add(condition.reason)
            await self._cluster.event(worker, "Normal" if normal else "Warning", condition.reason, condition.message)


def _status(
    worker: Manifest,
    observed: ObservedWorker,
    conditions: Sequence[Condition],
    addresses: list[str],
    offers: Offers,
) -> dict[str, Any]:
    generation = worker["metadata"]["generation"]
    identity = next(condition for condition in conditions if condition.type == "IdentityValid")
    host_ips = [item["ip"] for item in ((observed.pod or {}).get("status") or {}).get("hostIPs") or ()]
    status = {
        "observedGeneration": generation,
        "conditions": merged(worker, conditions, generation, observed.now),
        "peerId": observed.node.peer_id if identity.status else observed.pinned_peer_id,
        "capacity": observed.spec.resources.capacity.model_dump() if observed.spec else None,
        "externalAddresses": with_host_ips(addresses, host_ips) or None,
        "offering": offers.offering,
    }
    return {key: value for key, value in status.items() if value is not None}
