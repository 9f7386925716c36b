"""Apply the children of a HyphaWorker that differ from the objects in the store."""

from typing import Final

from hypha_contracts.kubernetes_errors import Conflict, Forbidden, Invalid, NotFound
from hypha_contracts.names import identity_secret, p2p_service_name
from hypha_contracts.reasons import WorkerReason
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.drift import is_applied, is_owned, marked
from hypha_operator.machinery.kinds import CERTIFICATE, CLUSTER_ROLE_BINDING, SERVICE, Manifest, kind_of
from hypha_operator.machinery.store import Store
from hypha_operator.pods.overlay import OverlayError
from hypha_operator.settings import Settings
from hypha_operator.workers.access import access, token_reviewer
from hypha_operator.workers.certificate import certificate
from hypha_operator.workers.controller import config_map, deployment
from hypha_operator.workers.network import (
    connector_service,
    disruption_budget,
    external_addresses,
    network_policy,
    p2p_service,
)
from hypha_resources.worker import HyphaWorkerSpec

_UNWATCHED_S: Final = 600.0
"""How often the operator applies objects that it does not watch."""


class RefusedError(Exception):
    """A child cannot be applied until somebody changes the spec or the cluster. `reason` goes into the condition."""

    def __init__(self, reason: WorkerReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WorkerChildren:
    """Applies the children of HyphaWorkers."""

    def __init__(self, store: Store, cluster: Cluster, clock: Clock, settings: Settings) -> None:
        self._store, self._cluster, self._clock, self._settings = store, cluster, clock, settings
        self._bound_s: dict[str, float] = {}  # by uid: the time of the last apply of the token reviewer's binding
        self._uncertified: dict[str, int] = {}  # by uid: the generation for which no Certificate is left to delete

    def release(self, uid: str) -> None:
        """Release what is remembered about a deleted worker."""
        self._bound_s.pop(uid, None)
        self._uncertified.pop(uid, None)

    async def apply(self, worker: Manifest, spec: HyphaWorkerSpec, *, accept_offers: bool) -> list[str]:
        """Apply all children. Return the addresses for peers outside the cluster, as `external_addresses` does.

        Raises:
            RefusedError: the API server refused a child, and will refuse it until somebody changes something.
            ApiError: the API server did not answer, or refused for a reason that may be temporary.
        """
        try:
            return await self._apply_all(worker, spec, accept_offers=accept_offers)
        except OverlayError as error:
            raise RefusedError(WorkerReason.INVALID_TEMPLATE, f"spec.controller.template: {error}") from error
        except Forbidden as error:
            raise RefusedError(WorkerReason.FORBIDDEN, f"{error}. {WorkerReason.FORBIDDEN.remedy}") from error
        except Invalid as error:
            raise RefusedError(WorkerReason.REFUSED, f"{error}. {WorkerReason.REFUSED.remedy}") from error

    async def _apply_all(self, worker: Manifest, spec: HyphaWorkerSpec, *, accept_offers: bool) -> list[str]:
        network = connector_service(worker), network_policy(worker, spec), disruption_budget(worker)
        for manifest in (*access(worker), *network):
            await self._apply(manifest)
        await self._bind(worker)
        await self._apply_certificate(worker, spec)
        addresses = external_addresses(spec, await self._apply_p2p_service(worker, spec))
        pinned = (worker.get("status") or {}).get("peerId")
        await self._apply(config_map(worker, spec, addresses, accept_offers=accept_offers, peer_id=pinned))
        await self._apply(deployment(worker, spec, addresses, self._settings, accept_offers=accept_offers))
        return addresses

    async def _apply(self, desired: Manifest) -> None:
        kind, metadata = kind_of(desired), desired["metadata"]
        await self._apply_to(self._store.get(kind, metadata["namespace"], metadata["name"]), desired)

    async def _apply_to(self, observed: Manifest | None, desired: Manifest) -> None:
        desired = marked(desired)
        if is_applied(observed, desired):
            return
        try:
            await self._cluster.apply(desired, force=observed is not None)
        except Conflict as error:
            raise _name_taken(desired, str(error)) from error

    async def _bind(self, worker: Manifest) -> None:
        uid, now_s = worker["metadata"]["uid"], self._clock.monotonic()
        if now_s - self._bound_s.get(uid, float("-inf")) < _UNWATCHED_S:
            return
        role = self._settings.token_reviewer_role
        binding = token_reviewer(worker, role)
        try:
            try:
                await self._cluster.apply(binding)
            except Invalid:  # another release created it for its own role, and the role of a binding is immutable
                await self._cluster.delete(CLUSTER_ROLE_BINDING, None, binding["metadata"]["name"])
                await self._cluster.apply(binding)
        except NotFound as error:
            raise RefusedError(
                WorkerReason.ROLE_MISSING,
                f"ClusterRole {role}, which lets the controller review its jobs' tokens, does not exist. "
                f"{WorkerReason.ROLE_MISSING.remedy}",
            ) from error
        self._bound_s[uid] = now_s

    async def _apply_certificate(self, worker: Manifest, spec: HyphaWorkerSpec) -> None:
        metadata = worker["metadata"]
        desired = certificate(worker, spec)
        if desired is None and self._uncertified.get(metadata["uid"]) == metadata["generation"]:
            return
        namespace, name = metadata["namespace"], identity_secret(metadata["name"])
        found = await self._cluster.get(CERTIFICATE, namespace, name)
        ours = found is not None and is_owned(found, worker)
        if desired is None:
            if found and ours:
                await self._cluster.delete(CERTIFICATE, namespace, name, uid=found["metadata"]["uid"])
            self._uncertified[metadata["uid"]] = metadata["generation"]
            return
        if found and not ours:
            raise _name_taken(desired, "the worker does not own it")
        try:
            await self._apply_to(found, desired)
        except NotFound as error:
            raise RefusedError(
                WorkerReason.CERT_MANAGER_MISSING,
                f"This cluster does not have cert-manager. {WorkerReason.CERT_MANAGER_MISSING.remedy}",
            ) from error

    async def _apply_p2p_service(self, worker: Manifest, spec: HyphaWorkerSpec) -> Manifest | None:
        """Apply or delete the Service for peers. Return it as it is in the store."""
        namespace, name = worker["metadata"]["namespace"], p2p_service_name(worker["metadata"]["name"])
        if desired := p2p_service(worker, spec):
            await self._apply(desired)
        elif (known := self._store.get(SERVICE, namespace, name)) and is_owned(known, worker):
            await self._cluster.delete(SERVICE, namespace, name, uid=known["metadata"]["uid"])
        return self._store.get(SERVICE, namespace, name)


def _name_taken(desired: Manifest, why: str) -> RefusedError:
    name = f"{desired['kind']} {desired['metadata']['name']}"
    message = f"{name} exists and has another owner: {why}. {WorkerReason.NAME_TAKEN.remedy}"
    return RefusedError(WorkerReason.NAME_TAKEN, message)
