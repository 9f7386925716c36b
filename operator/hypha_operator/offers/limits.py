"""Derive how much a worker may sell from the namespace's quotas and the cluster's nodes. Performs no I/O."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, Literal

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.kinds import Manifest
from hypha_contracts.names import EXECUTOR
from hypha_contracts.units import BYTES_PER_GB, RESOURCES, parse_quantity
from hypha_messages.types import Resources
from hypha_operator.pods.state import Finding
from hypha_resources.job import Amounts
from hypha_resources.worker import ResourcesSpec

_QUOTA_KEYS: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "cpu": (("cpu", "requests"), ("requests.cpu", "requests"), ("limits.cpu", "limits")),
    "memory": (("memory", "requests"), ("requests.memory", "requests"), ("limits.memory", "limits")),
    "storage": (("ephemeral-storage", "requests"), ("requests.ephemeral-storage", "requests")),
}
"""The keys of a ResourceQuota that count a resource, and whether they count requests or limits."""
_SCOPES: Final = frozenset({"NotTerminating", "NotBestEffort"})
"""Scopes to which every job's pod belongs. The other scopes depend on an executor's template."""
_NODE_KEYS: Final = {"cpu": "cpu", "memory": "memory", "storage": "ephemeral-storage"}
_UNITS: Final = {"cpu": Decimal(1), "memory": Decimal(BYTES_PER_GB), "storage": Decimal(BYTES_PER_GB)}
_REPELLING: Final = ("NoSchedule", "NoExecute")


@dataclass(frozen=True)
class Node:
    """The part of a node that decides which pods it can run."""

    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]
    allocatable: Mapping[str, str]
    cordoned: bool

    @classmethod
    def of(cls, manifest: Manifest) -> "Node":
        """Return the node of a manifest."""
        spec, status = manifest.get("spec") or {}, manifest.get("status") or {}
        return cls(
            manifest["metadata"].get("labels") or {},
            spec.get("taints") or (),
            status.get("allocatable") or {},
            bool(spec.get("unschedulable")),
        )


@dataclass(frozen=True)
class Limits:
    """How much a worker may sell in the network's units. None: as much as its spec says.

    Attributes:
        limit: for all leases together.
        per_job: for one job.
        missing: why no node can run a job: none has the devices, or none permits the pods.
    """

    limit: Amounts | None = None
    per_job: Amounts | None = None
    missing: Finding | None = None


@dataclass(frozen=True)
class Needs:
    """What a job's pod needs besides the resources of its lease.

    Attributes:
        requests: the requests of the bridge and of the template's containers, in the network's units.
        limits: their limits.
        node_selector: the labels of its node.
        tolerations: the taints that its node may have.
    """

    requests: Mapping[str, float]
    limits: Mapping[str, float]
    node_selector: Mapping[str, str]
    tolerations: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, pod: Mapping[str, Any]) -> "Needs":
        """Return the needs of a pod with this specification."""
        return cls(
            _besides_executor(pod, "requests"),
            _besides_executor(pod, "limits"),
            dict(pod.get("nodeSelector") or {}),
            tuple(pod.get("tolerations") or ()),
        )

    def permits(self, node: Node) -> bool:
        """Whether a node accepts pods, and node selector and tolerations permit it. Affinities are not considered."""
        if node.cordoned or any(node.labels.get(key) != value for key, value in self.node_selector.items()):
            return False
        return all(
            any(_tolerates(toleration, taint) for toleration in self.tolerations)
            for taint in node.taints
            if taint.get("effect") in _REPELLING
        )


def _besides_executor(pod: Mapping[str, Any], which: Literal["requests", "limits"]) -> dict[str, float]:
    containers = [*(pod.get("initContainers") or ()), *pod["containers"]]
    amounts = [
        (container.get("resources") or {}).get(which) or {} for container in containers if container["name"] != EXECUTOR
    ]
    return {name: sum(_amount(amount, key, name) for amount in amounts) for name, key in _NODE_KEYS.items()}


def limits_of(
    resources: ResourcesSpec,
    needs: Sequence[Needs],
    quotas: Iterable[Manifest],
    nodes: Collection[Node],
    running: Sequence[Amounts],
) -> Limits:
    """Return how much a worker may sell.

    Args:
        resources: what the spec offers.
        needs: what the jobs of each executor need besides.
        quotas: the ResourceQuotas of the namespace.
        nodes: the nodes of the cluster. Empty if the operator may not read them.
        running: the resources of the worker's jobs that have a pod.
    """
    capacity = resources.capacity
    total = _left_by_quotas(resources, needs, quotas, running)
    largest, missing = total, None
    if nodes and needs:
        suitable = [node for node in nodes if any(need.permits(node) for need in needs)]
        missing = _missing(resources, nodes, suitable)
        share = _most([need.requests for need in needs])
        rooms = [_room(node, resources, share) for node in suitable]
        total = _smaller(total, {name: sum(getattr(room, name) for room in rooms) for name in RESOURCES})
        rooms = [room for room in rooms if room.gpu] or rooms  # a job with GPUs needs all it has on one node
        largest = _smaller(total, {name: max((getattr(room, name) for room in rooms), default=0) for name in RESOURCES})
    return Limits(
        limit=None if total == capacity else Amounts.of(total),
        per_job=None if largest == total else Amounts.of(largest),
        missing=missing,
    )


def without(limits: Limits, resources: ResourcesSpec, used: Amounts) -> Limits:
    """Return what a worker may sell while something else uses a part of it."""
    total = limits.limit or Amounts.of(resources.capacity)
    left = {name: max(round(getattr(total, name) - getattr(used, name), 3), 0.0) for name in RESOURCES}
    return replace(limits, limit=Amounts(**left))


def _left_by_quotas(
    resources: ResourcesSpec, needs: Sequence[Needs], quotas: Iterable[Manifest], running: Sequence[Amounts]
) -> Resources:
    """Return what the quotas leave for this worker's leases, after the bridge's share of one more job."""
    shares = {"requests": _most([need.requests for need in needs]), "limits": _most([need.limits for need in needs])}
    left, gpu = resources.capacity, resources.gpu
    for quota in quotas:
        spec, status = quota.get("spec") or {}, quota.get("status") or {}
        if spec.get("scopeSelector") or not _SCOPES.issuperset(spec.get("scopes") or ()):
            continue
        hard, used = status.get("hard") or spec.get("hard") or {}, status.get("used") or {}
        free = {
            name: min(_amount(hard, key, name) - _amount(used, key, name) - shares[which][name] for key, which in found)
            for name, keys in _QUOTA_KEYS.items()
            if (found := [(key, which) for key, which in keys if key in hard])
        }
        if gpu and (key := f"requests.{gpu.resource_name}") in hard and not gpu.device_class_name:
            free["gpu"] = float(parse_quantity(hard[key]) - parse_quantity(used.get(key, "0"))) * gpu.memory_gb
        own = {name: sum(getattr(job, name) for job in running) for name in free}
        left = _smaller(left, {name: max(amount + own[name], 0.0) for name, amount in free.items()})
    return left


def _most(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: max((share[name] for share in shares), default=0.0) for name in _NODE_KEYS}


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return (toleration.get("key"), toleration.get("value") or "") == (taint.get("key"), taint.get("value") or "")


def _room(node: Node, resources: ResourcesSpec, share: Mapping[str, float]) -> Resources:
    """Return the most that a job may have on an otherwise empty node."""
    room = {name: max(_amount(node.allocatable, key, name) - share[name], 0.0) for name, key in _NODE_KEYS.items()}
    gpu = resources.gpu
    if gpu is None:
        return Resources(**room, gpu=0.0)
    if gpu.device_class_name:  # devices of DRA are not part of a node
        return Resources(**room, gpu=resources.capacity.gpu)
    return Resources(**room, gpu=_devices(node, gpu.resource_name) * gpu.memory_gb)


def _devices(node: Node, resource: str) -> int:
    return int(parse_quantity(node.allocatable.get(resource) or "0"))


def _missing(resources: ResourcesSpec, nodes: Collection[Node], suitable: Collection[Node]) -> Finding | None:
    gpu = resources.gpu
    name = gpu.resource_name if gpu and not gpu.device_class_name else None
    if name and not any(_devices(node, name) for node in nodes):
        message = f"no node has {name}: is its device plugin running? {JobReason.DEVICES_MISSING.remedy}"
        return Finding(JobReason.DEVICES_MISSING, message)
    if not any(name is None or _devices(node, name) for node in suitable):
        having = f" with {name}" if name else ""
        return Finding(
            JobReason.UNSCHEDULABLE,
            f"no node{having} that accepts pods matches the executors' nodeSelector and tolerations. "
            "Correct executors.template, or make such nodes available.",
        )
    return None


def _amount(quantities: Mapping[str, Any], key: str, name: str) -> float:
    """Return a quantity in the network's unit of a resource."""
    return float(parse_quantity(str(quantities.get(key, "0"))) / _UNITS[name])


def _smaller(amounts: Resources, most: Mapping[str, float]) -> Resources:
    """Return the amounts, cut down where there is less. What is left is rounded down to a thousandth."""
    cut = {name: math.floor(amount * 1000) / 1000 for name, amount in most.items() if amount < getattr(amounts, name)}
    return amounts.model_copy(update=cut)
