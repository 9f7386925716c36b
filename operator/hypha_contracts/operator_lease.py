"""The Leases by which the operator's replicas elect a leader, and releases see which of them serves a namespace."""

from typing import Final

from hypha_contracts.kinds import Manifest

LEASE_NAME: Final = "hypha-operator"
"""The Lease of a namespace. Its holder serves the namespace."""
CLUSTER_LEASE: Final = ("default", "hypha-operator-cluster")
"""Namespace and name of the Lease of the cluster."""


def holder_of(lease: Manifest) -> str:
    """Return who holds a Lease, as `<release>/<replica>`; empty if nobody does."""
    return (lease.get("spec") or {}).get("holderIdentity") or ""


def release_of(holder: str) -> str:
    """Return the release of a holder."""
    return holder.rpartition("/")[0]
