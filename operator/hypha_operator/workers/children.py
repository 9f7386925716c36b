"""Apply the children of a HyphaWorker that differ from the objects in the store."""

from typing import Final

from hypha_contracts.kinds import (
    CERTIFICATE,
    CONFIG_MAP,
    DEPLOYMENT,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    Kind,
    Manifest,
    kind_of,
)
from hypha_contracts.kubernetes_errors import Conflict, Forbidden, Invalid, NotFound, Refused, is_admission
from hypha_contracts.names import identity_secret, job_account, p2p_service_name, status_service_name
from hypha_contracts.reasons import WorkerReason
from hypha_operator.machinery.child_writes import write_child
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.drift import is_applied, is_owned, marked, projected
from hypha_operator.machinery.kinds import Key
from hypha_operator.machinery.manifests import with_common
from hypha_operator.machinery.store import Store
from hypha_operator.pods.overlay import OverlayError
from hypha_operator.settings import Settings
from hypha_operator.workers.access import access
from hypha_operator.workers.certificate import certificate
from hypha_operator.workers.controller import config_map, deployment
from hypha_operator.workers.network import (
    connector_service,
    disruption_budget,
    external_addresses,
    job_disruption_budget,
    network_policy,
    p2p_service,
    status_service,
)
from hypha_operator.workers.rollout import Rollouts
from hypha_resources.worker import HyphaWorkerSpec

_TURN_S: Final = 5.0

_REASONS: Final = {Forbidden: WorkerReason.FORBIDDEN, Invalid: WorkerReason.REFUSED}


class RefusedError(Exception):
    """A child cannot be applied until somebody changes the spec or the cluster. `reason` goes into the condition."""

    def __init__(self, reason: WorkerReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WorkerChildren:
    """Applies the children of HyphaWorkers."""

    def __init__(self, store: Store, cluster: Cluster, clock: Clock, settings: Settings) -> None:
        self._store, self._cluster, self._clock, self._settings = store, cluster, clock, settings
        self._admitted: dict[str, dict[str, tuple[Manifest, Manifest]]] = {}
        """By uid, then by kind and name of a child that admission changed: the applied and the resulting manifest."""
        self._rollouts = Rollouts()
        self._waiting: set[str] = set()  # uids of workers whose controller waits for its turn to be changed
        self._uncertified: dict[str, int] = {}  # by uid: the generation for which no Certificate is left to delete

    def release(self, uid: str) -> None:
        """Release what is remembered about a deleted worker."""
        self._admitted.pop(uid, None)
        self._waiting.discard(uid)
        self._uncertified.pop(uid, None)

    def retry_s(self, uid: str) -> float:
        """Return the seconds after which to apply the children again, because a controller waits for its turn."""
        return _TURN_S if uid in self._waiting else float("inf")

    async def apply(self, worker: Manifest, spec: HyphaWorkerSpec) -> list[str]:
        """Apply all children. Return the addresses for peers outside the cluster, as `external_addresses` does.

        Raises:
            RefusedError: the API server refused a child, and will refuse it until somebody changes something.
            ApiError: the API server did not answer, or refused for a reason that may be temporary.
        """
        try:
            return await self._apply_all(worker, spec)
        except OverlayError as error:
            raise RefusedError(WorkerReason.INVALID_TEMPLATE, f"spec.controller.template: {error}") from error
        except Refused as error:
            reason = _reason_of(error)
            if reason is None:
                raise
            raise RefusedError(reason, f"{error}. {reason.remedy}") from error

    async def _apply_all(self, worker: Manifest, spec: HyphaWorkerSpec) -> list[str]:
        policy = network_policy(worker, spec, self._settings.metrics_from)
        for manifest in (*access(worker), connector_service(worker), policy):
            await self._apply(spec, manifest)
        name = worker["metadata"]["name"]
        await self._apply_or_delete(worker, spec, SERVICE, status_service_name(name), status_service(worker, spec))
        await self._apply_certificate(worker, spec)
        service = await self._apply_or_delete(worker, spec, SERVICE, p2p_service_name(name), p2p_service(worker, spec))
        addresses = external_addresses(spec, service)
        pinned = (worker.get("status") or {}).get("peerId")
        await self._apply(spec, config_map(worker, spec, addresses, peer_id=pinned))
        controller = deployment(worker, spec, addresses, self._settings)
        is_new = self._store.get(DEPLOYMENT, worker["metadata"]["namespace"], controller["metadata"]["name"]) is None
        if not is_new:
            await self._apply_budgets(worker, spec)  # even if the change of the controller is refused
        await self._apply_deployment(worker, spec, controller)
        if is_new:  # Kubernetes warns of each budget without pods, and writes its status more often
            await self._apply_budgets(worker, spec)
        return addresses

    async def _apply_budgets(self, worker: Manifest, spec: HyphaWorkerSpec) -> None:
        await self._apply(spec, disruption_budget(worker))
        name, budget = job_account(worker["metadata"]["name"]), job_disruption_budget(worker, spec)
        await self._apply_or_delete(worker, spec, POD_DISRUPTION_BUDGET, name, budget)

    async def _apply_deployment(self, worker: Manifest, spec: HyphaWorkerSpec, desired: Manifest) -> None:
        """Apply the controller, unless the operator has changed it and too many others are down for this reason.

        A change by the worker's owner is applied at once. It makes a generation that the status does not name yet.
        """
        metadata = worker["metadata"]
        key = Key(DEPLOYMENT, metadata["namespace"], desired["metadata"]["name"])
        observed, desired = self._store.get(*key), _completed(desired, spec)
        self._waiting.discard(metadata["uid"])
        if self._is_current(observed, desired):
            return
        by_owner = (worker.get("status") or {}).get("observedGeneration") != metadata["generation"]
        now_s = self._clock.monotonic()
        if not by_owner and not self._rollouts.admits(key, observed, now_s, lambda other: self._store.get(*other)):
            self._waiting.add(metadata["uid"])
            return
        try:
            await self._change(observed, desired)
        finally:
            self._rollouts.on_applied(key)

    async def _apply(self, spec: HyphaWorkerSpec, desired: Manifest) -> None:
        kind, metadata = kind_of(desired), desired["metadata"]
        await self._apply_to(self._store.get(kind, metadata["namespace"], metadata["name"]), spec, desired)

    async def _apply_to(self, observed: Manifest | None, spec: HyphaWorkerSpec, desired: Manifest) -> None:
        desired = _completed(desired, spec)
        if not self._is_current(observed, desired):
            await self._change(observed, desired)

    def _is_current(self, observed: Manifest | None, desired: Manifest) -> bool:
        """Whether an object is as applied, or as admission changed it."""
        applied, resulting = self._admitted_of(desired).get(_name(desired), ({}, {}))
        return is_applied(observed, desired) or (applied == desired and is_applied(observed, resulting))

    async def _change(self, observed: Manifest | None, desired: Manifest) -> None:
        try:
            answer = await self._write(observed, desired)
        except Conflict as error:
            raise _name_taken(desired, str(error)) from error
        if is_applied(answer, desired):
            self._admitted_of(desired).pop(_name(desired), None)
        else:
            self._admitted_of(desired)[_name(desired)] = desired, projected(answer, desired)

    def _admitted_of(self, desired: Manifest) -> dict[str, tuple[Manifest, Manifest]]:
        return self._admitted.setdefault(_owner_uid(desired), {})

    async def _write(self, observed: Manifest | None, desired: Manifest) -> Manifest:
        if desired["kind"] == CONFIG_MAP.name:  # changes once the node has reported its peer id
            return await self._cluster.apply(desired, force=observed is not None)
        return await write_child(self._cluster, observed, desired, adopt=False)

    async def _apply_certificate(self, worker: Manifest, spec: HyphaWorkerSpec) -> None:
        metadata = worker["metadata"]
        desired = certificate(worker, spec)
        if desired is None and self._uncertified.get(metadata["uid"]) == metadata["generation"]:
            return
        namespace, name = metadata["namespace"], identity_secret(metadata["name"])
        found = await self._certificate(namespace, name, desired)
        ours = found is not None and is_owned(found, worker)
        if desired is None:
            if found and ours:
                await self._cluster.delete(CERTIFICATE, namespace, name, uid=found["metadata"]["uid"])
            self._uncertified[metadata["uid"]] = metadata["generation"]
            return
        if found and not ours:
            raise _name_taken(desired, "the worker does not own it")
        try:
            await self._apply_to(found, spec, desired)
        except NotFound as error:
            raise RefusedError(
                WorkerReason.CERT_MANAGER_MISSING,
                f"This cluster does not have cert-manager. {WorkerReason.CERT_MANAGER_MISSING.remedy}",
            ) from error

    async def _certificate(self, namespace: str, name: str, desired: Manifest | None) -> Manifest | None:
        """Return the Certificate. A release of one namespace has no right to it if cert-manager was installed later."""
        try:
            return await self._cluster.get(CERTIFICATE, namespace, name)
        except Forbidden as error:
            if desired is None:
                return None
            raise RefusedError(
                WorkerReason.CERT_MANAGER_MISSING,
                "This cluster does not have cert-manager, or did not have it when the chart was installed or upgraded. "
                f"{WorkerReason.CERT_MANAGER_MISSING.remedy}",
            ) from error

    async def _apply_or_delete(
        self, worker: Manifest, spec: HyphaWorkerSpec, kind: Kind, name: str, desired: Manifest | None
    ) -> Manifest | None:
        """Apply a child, or delete it if it is not desired. Return it as it is in the store."""
        namespace = worker["metadata"]["namespace"]
        if desired is not None:
            await self._apply(spec, desired)
        elif (known := self._store.get(kind, namespace, name)) and is_owned(known, worker):
            await self._cluster.delete(kind, namespace, name, uid=known["metadata"]["uid"])
            self._store.remove(kind, known)  # not every kind has a watch that shows the deletion
        return self._store.get(kind, namespace, name)


def _completed(desired: Manifest, spec: HyphaWorkerSpec) -> Manifest:
    return marked(with_common(desired, spec.common_labels, spec.common_annotations))


def _name(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def _owner_uid(manifest: Manifest) -> str:
    return str(manifest["metadata"]["ownerReferences"][0]["uid"])


def _reason_of(error: Refused) -> WorkerReason | None:
    """Return why the API server will refuse a child until somebody changes something, or None if it may not."""
    if "exceeded quota" in error.message:
        return WorkerReason.QUOTA_EXCEEDED
    if is_admission(error):
        return WorkerReason.ADMISSION_REFUSED
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), None)


def _name_taken(desired: Manifest, why: str) -> RefusedError:
    message = f"{_name(desired)} exists and has another owner: {why}. {WorkerReason.NAME_TAKEN.remedy}"
    return RefusedError(WorkerReason.NAME_TAKEN, message)
