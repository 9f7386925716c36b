"""The values of the metrics that jobs report about themselves, for as long as a job lives and some time longer."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from math import inf, isfinite
from threading import Lock
from typing import Final
from uuid import UUID

from opentelemetry.metrics import Observation

from hypha_contracts.job_telemetry import MetricRecord
from hypha_telemetry.instruments import Instruments
from hypha_telemetry.job_metrics import PROGRESS, RESOURCES, Reported
from hypha_telemetry.metric import Kind

_KEPT_S: Final = 120.0
"""How long the last values of an ended job are exported."""
_MAX_TOTAL: Final = 2.0**62
"""A counter above this would not fit into the exported numbers."""


@dataclass
class _Job:
    """The values of one job, by metric and attributes. It is exported until `until`, in monotonic seconds."""

    until: float = inf
    values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = field(default_factory=dict)


class JobMetrics:
    """Keeps and exports what jobs report. Thread-safe.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, instruments: Instruments, clock: Callable[[], float] = time.monotonic) -> None:
        self._instruments = instruments
        self._clock = clock
        self._known: dict[str, Reported] = {}
        self._jobs: dict[UUID, _Job] = {}
        self._lock = Lock()
        self._observe(PROGRESS)

    def observe_resources(self) -> None:
        """Accept and export the resource usage that jobs measure themselves, too."""
        self._observe(RESOURCES)

    def take(self, task_id: UUID, records: Iterable[MetricRecord]) -> None:
        """Record values of a job. Unknown metrics and attributes, and impossible values, are dropped."""
        with self._lock:
            values = self._jobs.setdefault(task_id, _Job()).values
            for record in records:
                known = self._known.get(record.name)
                if known is None or not known.allows(record.attributes):
                    continue
                counts = known.metric.kind is Kind.COUNTER
                key = record.name, tuple(sorted(record.attributes.items()))
                value = values.get(key, 0.0) + record.value if counts else record.value
                falls = counts and record.value < 0
                if counts == record.increase and not falls and isfinite(value) and abs(value) < _MAX_TOTAL:
                    values[key] = value

    def end(self, task_id: UUID) -> None:
        """Stop exporting the values of a job after some time."""
        with self._lock:
            if task_id in self._jobs:
                self._jobs[task_id].until = self._clock() + _KEPT_S

    def _observe(self, reported: Iterable[Reported]) -> None:
        for item in reported:
            self._known[item.metric.name] = item
            self._instruments.observe(item.metric, partial(self._read, item.metric.name))

    def _read(self, name: str) -> list[Observation]:
        now = self._clock()
        with self._lock:
            self._jobs = {task_id: job for task_id, job in self._jobs.items() if now < job.until}
            return [
                Observation(value, {"task": str(task_id), **dict(attributes)})
                for task_id, job in self._jobs.items()
                for (metric, attributes), value in job.values.items()
                if metric == name
            ]
