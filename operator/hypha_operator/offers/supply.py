"""Read what the cluster has: quotas and nodes. They are read rarely, and once for all workers."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from hypha_contracts.kinds import NODE, RESOURCE_QUOTA, Kind, Manifest
from hypha_contracts.kubernetes_errors import Forbidden
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.offers.limits import Node

T = TypeVar("T")

_SETTLED_S: Final = 600.0
_URGENT_S: Final = 20.0
_S_PER_NODE: Final = 0.2
"""The least age of a list of nodes before it is read again, for each node in it: 1,000 nodes are read every 200 s."""


@dataclass
class _Reading(Generic[T]):
    """What was read last, and when. The lock makes several workers wait for one call."""

    found: list[T] = field(default_factory=list)
    read_s: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Supply:
    """The quotas of each namespace and the nodes of the cluster, as they were read last."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._quotas: dict[str, _Reading[Manifest]] = {}
        self._nodes = _Reading[Node]()

    async def quotas(self, namespace: str, *, changed: bool) -> list[Manifest]:
        """Return the ResourceQuotas of a namespace. Once it has some, they are read more often.

        Args:
            namespace: the namespace.
            changed: whether something there uses more or less since they were read.
        """
        reading = self._quotas.setdefault(namespace, _Reading[Manifest]())
        age_s = (0.0 if changed else _URGENT_S) if reading.found else _SETTLED_S
        return await self._read(reading, age_s, RESOURCE_QUOTA, namespace, lambda quota: quota)

    async def nodes(self, *, urgent: bool) -> list[Node]:
        """Return the nodes, or none if the operator may not read nodes.

        Args:
            urgent: whether a worker waits for a node to change.
        """
        known = len(self._nodes.found)
        age_s = max(_URGENT_S, _S_PER_NODE * known) if urgent and known else _SETTLED_S
        return await self._read(self._nodes, age_s, NODE, None, Node.of)

    async def _read(
        self,
        reading: _Reading[T],
        age_s: float,
        kind: Kind,
        namespace: str | None,
        parse: Callable[[Manifest], T],
    ) -> list[T]:
        """Return what was read, unless it is too old. What the operator may not read is empty."""
        async with reading.lock:
            if self._clock.monotonic() - reading.read_s < age_s:
                return reading.found
            try:
                pages = self._cluster.pages(kind, namespace, {})
                reading.found = [parse(item) async for page in pages for item in page]
            except Forbidden:
                reading.found = []
            reading.read_s = self._clock.monotonic()
            return reading.found
