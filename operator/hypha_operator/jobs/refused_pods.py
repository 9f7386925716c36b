"""Find out why Jobs have no pods."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hypha_contracts.kinds import EVENT, JOB, Manifest
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.pods.refusal import refusal_in
from hypha_operator.pods.state import Finding

READ_S: Final = 5.0
"""How long the Events of a namespace stay valid. The API server reads all of them from etcd to select a few."""
_FAILED_CREATE: Final = "FailedCreate"
"""The reason of a Job's Events about a pod that the API server refused."""


@dataclass
class _Reading:
    """What the Events of a namespace said, by the uid of the Job. The lock makes several jobs wait for one list."""

    findings: Mapping[str, Finding | None] = field(default_factory=dict)
    read_s: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RefusedPods:
    """Finds out why the API server refuses the pods of Jobs. Only the Events about a Job say why."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._readings: dict[str, _Reading] = {}

    async def of(self, job: Manifest) -> Finding | None:
        """Return why the API server refuses the pod of a Job, or None if no Event says so. Raises ApiError."""
        metadata = job["metadata"]
        self._forget()
        reading = self._readings.setdefault(metadata["namespace"], _Reading())
        async with reading.lock:
            if self._is_old(reading):
                reading.findings = await self._read(metadata["namespace"])
                reading.read_s = self._clock.monotonic()
            return reading.findings.get(metadata["uid"])

    def _forget(self) -> None:
        """Forget the namespaces that nobody has asked about lately."""
        self._readings = {
            namespace: reading
            for namespace, reading in self._readings.items()
            if reading.lock.locked() or not self._is_old(reading)
        }

    def _is_old(self, reading: _Reading) -> bool:
        return self._clock.monotonic() - reading.read_s >= READ_S

    async def _read(self, namespace: str) -> dict[str, Finding | None]:
        selector = f"involvedObject.kind={JOB.name},reason={_FAILED_CREATE}"
        events: defaultdict[str, list[Manifest]] = defaultdict(list)
        for event in await self._cluster.find(EVENT, namespace, field_selector=selector):
            events[event["involvedObject"].get("uid", "")].append(event)
        return {uid: refusal_in(about) for uid, about in events.items()}
