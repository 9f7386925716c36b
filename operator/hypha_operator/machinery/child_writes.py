"""Create a child, or change the object that has its name."""

import logging
from typing import Final

from hypha_contracts.kinds import Manifest, kind_of
from hypha_contracts.kubernetes_errors import Conflict, Unavailable
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.drift import digest_of
from hypha_operator.machinery.ownership import handed_over, is_handed_over

_ATTEMPTS: Final = 3

_log = logging.getLogger(__name__)


async def write_child(cluster: Cluster, observed: Manifest | None, desired: Manifest, *, adopt: bool) -> Manifest:
    """Create a child, or apply it to the object that has its name. Return the object.

    Most children are new. The API server creates an object with about half of the work of an apply.

    Args:
        cluster: the API server.
        observed: the object in the store, or None if the store has none. The store may be stale.
        desired: the child, marked with its digest.
        adopt: whether to take the fields of an object that has another owner.

    Raises:
        Conflict: the object has another owner and other values, and is not adopted.
        ApiError: the API server refused or did not answer.
    """
    if observed is None:
        try:
            return await cluster.create(desired)
        except Conflict:
            observed = await _existing(cluster, desired)
        if observed is None or _owners(observed).isdisjoint(_owners(desired)):
            return await cluster.apply(desired, force=adopt)
    if not is_handed_over(observed) and digest_of(observed) != digest_of(desired):
        await _hand_over(cluster, desired)
    return await cluster.apply(desired)


async def create_once(cluster: Cluster, desired: Manifest) -> None:
    """Create an object whose specification nobody can change, unless one with its name exists already."""
    try:
        await cluster.create(desired)
    except Conflict as error:
        if error.reason != "AlreadyExists":  # a quota that changes at this moment conflicts, too
            raise


async def _existing(cluster: Cluster, desired: Manifest) -> Manifest | None:
    metadata = desired["metadata"]
    return await cluster.get(kind_of(desired), metadata["namespace"], metadata["name"])


def _owners(manifest: Manifest) -> set[str]:
    return {reference["uid"] for reference in manifest["metadata"].get("ownerReferences") or ()}


async def _hand_over(cluster: Cluster, desired: Manifest) -> None:
    """Have the next apply remove the fields that the object was created with and that the child lacks."""
    for _ in range(_ATTEMPTS):
        existing = await _existing(cluster, desired)
        if existing is None or is_handed_over(existing):
            return
        try:
            await cluster.merge(handed_over(existing))
        except Conflict as error:
            _log.info("%s %s changes at this moment: %s", desired["kind"], desired["metadata"]["name"], error)
        else:
            return
    message = "the object changes too often to change its field manager; the operator tries again"
    raise Unavailable(f"{desired['kind']} {desired['metadata']['name']}", 0, "Conflict", message)
