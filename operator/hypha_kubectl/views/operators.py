"""The operators of a cluster, and the Leases that say which of them leads or serves a namespace. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.operator_lease import CLUSTER_LEASE, LEASE_NAME, holder_of, release_of
from hypha_kubectl.views.jobs import time_of

COMPONENT_SELECTOR: Final = "app.kubernetes.io/component=operator"
"""Selects the Deployments and pods of operators, and maybe those of others."""
_PROGRAM: Final = "hypha-operator"
_SKEW: Final = timedelta(seconds=5)
"""By how much the clocks of an operator and of the API server may differ."""


@dataclass(frozen=True)
class Operator:
    """An installed operator.

    Attributes:
        release: its release, as `<namespace>/<name>`, by which Leases name it.
        namespaces: the namespaces that it serves; empty for the complete cluster.
    """

    namespace: str
    name: str
    release: str
    namespaces: tuple[str, ...]
    version: str
    image: str
    replicas: int
    ready: int

    @property
    def lease_place(self) -> tuple[str, str]:
        """Namespace and name of the Lease by which its replicas elect a leader."""
        return (self.namespaces[0], LEASE_NAME) if self.namespaces else CLUSTER_LEASE


@dataclass(frozen=True)
class Held:
    """A Lease of an operator.

    Attributes:
        release: the release that holds it.
        until: when it ends unless it is renewed.
    """

    namespace: str
    name: str
    release: str
    until: datetime

    def is_current(self, now: datetime) -> bool:
        """Whether its holder lives, by the clock of the API server."""
        return now < self.until + _SKEW


def operators_of(deployments: Iterable[Manifest]) -> list[Operator]:
    """Return the operators among Deployments."""
    return [operator for deployment in deployments if (operator := _operator_of(deployment))]


def _operator_of(deployment: Manifest) -> Operator | None:
    metadata, spec, status = deployment["metadata"], deployment["spec"], deployment.get("status") or {}
    for container in spec["template"]["spec"]["containers"]:
        if (container.get("command") or [""])[0] == _PROGRAM:
            arguments = container.get("args") or []
            return Operator(
                namespace=metadata["namespace"],
                name=metadata["name"],
                release=next(iter(_values(arguments, "--release")), "default/hypha-operator"),
                namespaces=tuple(_values(arguments, "--namespace")),
                version=(metadata.get("labels") or {}).get("app.kubernetes.io/version", ""),
                image=container.get("image", ""),
                replicas=int(spec.get("replicas", 1)),
                ready=int(status.get("readyReplicas") or 0),
            )
    return None


def _values(arguments: Sequence[str], option: str) -> list[str]:
    return [argument.partition("=")[2] for argument in arguments if argument.startswith(f"{option}=")]


def is_pod_of_operator(pod: Manifest) -> bool:
    """Whether a pod runs an operator."""
    return any((container.get("command") or [""])[0] == _PROGRAM for container in pod["spec"]["containers"])


def held_of(lease: Manifest | None) -> Held | None:
    """Return who holds a Lease of operators, or None if nobody does."""
    if lease is None or not holder_of(lease):
        return None
    spec, metadata = lease["spec"], lease["metadata"]
    renewed = time_of(spec.get("renewTime")) or time_of(spec.get("acquireTime"))
    if renewed is None:
        return None
    until = renewed + timedelta(seconds=float(spec.get("leaseDurationSeconds") or 0))
    return Held(metadata["namespace"], metadata["name"], release_of(holder_of(lease)), until)
