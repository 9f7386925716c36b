"""Prepare the removal of a release: stop its replicas, and remove what would otherwise outlive or block it."""

import logging
from typing import Final

from hypha_contracts.kinds import LEASE, WORKER, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Conflict, Forbidden, NotFound
from hypha_contracts.operator_lease import LEASE_NAME, holder_of, release_of
from hypha_operator.machinery.claims import REPLICA, claims_in
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.election import LEASE_S, UNINSTALLER, lease_of, lease_place, observed, write_lease
from hypha_operator.workers.drain import release

_ATTEMPTS: Final = 20
_PAUSE_S: Final = 0.2
_HELD_S: Final = 60

_log = logging.getLogger(__name__)


class UninstallError(Exception):
    """The release could not be prepared for its removal."""


async def uninstall(cluster: Cluster, clock: Clock, name: str, namespaces: tuple[str, ...]) -> None:
    """Stop the replicas of a release, and remove its finalizers and Leases. Workers and jobs go on.

    Args:
        cluster: the API server.
        clock: the source of time.
        name: the release, as `<namespace>/<name>`.
        namespaces: the namespaces that the release serves; empty for the complete cluster.

    Raises:
        UninstallError: something could not be removed.
    """
    try:
        await _uninstall(cluster, clock, name, namespaces)
    except (Forbidden, NotFound) as error:  # its namespace is being deleted, or was
        _log.warning("not everything can be removed, see docs/operations.md: %s", error)
    except ApiError as error:
        raise UninstallError(f"{error}. Try again, or uninstall with --no-hooks (docs/operations.md).") from error


async def _uninstall(cluster: Cluster, clock: Clock, name: str, namespaces: tuple[str, ...]) -> None:
    place = lease_place(namespaces)
    if not await _take(cluster, clock, name, place):
        return
    await clock.sleep(LEASE_S)  # until then, a replica that does not know it yet may write
    scopes = namespaces or (None,)
    claims = [claim for scope in scopes for claim in await claims_in(cluster, scope)]
    # A namespace without a claim counts too: while it is being deleted, its claim may go before its workers.
    others = {_namespace(claim) for claim in claims if release_of(holder_of(claim)) not in ("", name)}
    workers = [worker for scope in scopes for worker in await cluster.find(WORKER, scope)]
    for worker in workers:
        if _namespace(worker) not in others:
            await _release(cluster, clock, worker)
    for claim in claims:
        if holder_of(claim) == f"{name}/{REPLICA}":
            await cluster.delete(LEASE, _namespace(claim), LEASE_NAME, uid=claim["metadata"]["uid"])
    await cluster.delete(LEASE, *place)


def _namespace(object_: Manifest) -> str:
    return str(object_["metadata"]["namespace"])


async def _release(cluster: Cluster, clock: Clock, worker: Manifest) -> None:
    """Remove a worker's finalizer. Its node writes its status about every minute, so it may have changed."""
    namespace, name = _namespace(worker), worker["metadata"]["name"]
    current: Manifest | None = worker
    for _ in range(_ATTEMPTS):
        if current is None or await release(current, cluster):
            return
        await clock.sleep(_PAUSE_S)
        current = await cluster.get(WORKER, namespace, name)
    raise UninstallError(f"HyphaWorker {namespace}/{name} changes all the time. Try again.")


async def _take(cluster: Cluster, clock: Clock, name: str, place: tuple[str, str]) -> bool:
    """Take the Lease, so that no replica leads any more. Return False if another release holds it."""
    for _ in range(_ATTEMPTS):
        before = observed(await cluster.get(LEASE, *place), None, clock.monotonic())
        if before.release not in ("", name):
            _log.info("release %s serves %s, so there is nothing to remove", before.release, place[0])
            return False
        try:
            await write_lease(cluster, lease_of(place, before, f"{name}/{UNINSTALLER}", _HELD_S, clock.now()))
        except Conflict:  # a replica renewed it at the same time
            await clock.sleep(_PAUSE_S)
        else:
            return True
    raise UninstallError(f"Lease {place[0]}/{place[1]} changes all the time. Stop the operator, then try again.")
