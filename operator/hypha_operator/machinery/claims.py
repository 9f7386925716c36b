"""Claim the namespaces that this release serves, so that releases with overlapping scopes do not serve one twice."""

import asyncio
import logging
import math
from typing import Final

from hypha_contracts.kinds import LEASE, WORKER, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Conflict, Forbidden, is_terminating
from hypha_contracts.operator_lease import LEASE_NAME, holder_of
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.election import Observed, lease_of, observed, served_by_other, write_lease
from hypha_operator.machinery.store import Store

CLAIM_S: Final = 300
"""Another release may claim the namespace once it has seen the claim unchanged for this long."""
_RENEW_S: Final = 100.0
_HELD_S: Final = 240.0
"""How long this release relies on a claim after it sent the renewal."""
REPLICA: Final = "all"
"""A claim belongs to all replicas of a release, because only the one that leads uses it."""

_log = logging.getLogger(__name__)


class Claims:
    """The namespaces outside of the election's scope in which this release serves HyphaWorkers.

    A release of one namespace elects its leader by the Lease `hypha-operator` there. A release of the cluster, or of
    several namespaces, holds the Lease of that name in each namespace with HyphaWorkers. So exactly one release serves
    a namespace, and a second one sees which.

    Args:
        cluster: the API server; it accepts writes while this replica leads.
        clock: the source of time.
        store: shows which namespaces have HyphaWorkers.
        release: this release, as `<namespace>/<name>`.
        namespaces: the namespaces to serve, the first of which the election holds; None for the complete cluster.
    """

    def __init__(
        self, cluster: Cluster, clock: Clock, store: Store, release: str, namespaces: tuple[str | None, ...]
    ) -> None:
        self._cluster, self._clock, self._store = cluster, clock, store
        self._holder, self._namespaces = f"{release}/{REPLICA}", namespaces
        self._claiming = asyncio.Lock()
        self._held: dict[str, float] = {}
        self._seen: dict[str, Observed] = {}

    async def rival(self, namespace: str) -> str | None:
        """Claim a namespace; return None, or the message that another release serves it. Raises ApiError."""
        if namespace == self._namespaces[0]:
            return None
        async with self._claiming:
            if self._clock.monotonic() < self._held.get(namespace, -math.inf):
                return None
            return await self._claim(namespace)

    async def run(self) -> None:
        """Renew the claims until cancelled, and release those of namespaces without HyphaWorkers."""
        while True:
            for namespace in self._namespaces if self._namespaces[0] is None else self._namespaces[1:]:
                try:
                    await self._renew(namespace)
                except ApiError as error:
                    _log.warning("%s", error)
            await self._clock.sleep(_RENEW_S)

    async def _renew(self, scope: str | None) -> None:
        """Renew or release the claims in a scope, also those that an earlier process of this release made."""
        for lease in await claims_of(self._cluster, scope, self._holder):
            namespace = lease["metadata"]["namespace"]
            await self.release_unused(namespace)
            if namespace in self._held:
                async with self._claiming:
                    await self._claim(namespace)

    async def release_unused(self, namespace: str) -> None:
        """Delete the claim of a namespace that has no HyphaWorkers any more."""
        if namespace == self._namespaces[0] or any(of == namespace for of, _, _ in self._store.places(WORKER)):
            return
        self._held.pop(namespace, None)
        for lease in await claims_of(self._cluster, namespace, self._holder):
            await self._cluster.delete(LEASE, namespace, LEASE_NAME, uid=lease["metadata"]["uid"])

    async def _claim(self, namespace: str) -> str | None:
        sent_s = self._clock.monotonic()
        seen = observed(await self._cluster.get(LEASE, namespace, LEASE_NAME), self._seen.get(namespace), sent_s)
        self._seen[namespace] = seen
        if seen.holder != self._holder and not seen.is_free(sent_s):
            self._held.pop(namespace, None)
            return served_by_other(seen.release, (namespace, LEASE_NAME))
        lease = lease_of((namespace, LEASE_NAME), seen, self._holder, CLAIM_S, self._clock.now())
        try:
            await write_lease(self._cluster, lease)
        except Conflict:
            return f"another release claims namespace {namespace} at this moment"
        except Forbidden as error:
            if not is_terminating(error):  # otherwise nobody can claim it any more
                raise
        self._held[namespace] = sent_s + _HELD_S
        return None


async def claims_in(cluster: Cluster, namespace: str | None) -> list[Manifest]:
    """Return the claims of all releases, in a namespace or in the cluster."""
    return await cluster.find(LEASE, namespace, field_selector=f"metadata.name={LEASE_NAME}")


async def claims_of(cluster: Cluster, namespace: str | None, holder: str) -> list[Manifest]:
    """Return the claims with this holder, in a namespace or in the cluster."""
    return [claim for claim in await claims_in(cluster, namespace) if holder_of(claim) == holder]
