"""What the node exports: its instruments, and the exporters behind them. Without a configuration they do nothing."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from opentelemetry.metrics import Meter, Observation

from hypha_contracts.node_config import NodeConfig
from hypha_network.traffic import PeerCounts
from hypha_telemetry import node_metrics
from hypha_telemetry.instruments import Instruments
from hypha_telemetry.settings import SettingsError, read_settings
from hypha_telemetry.start import exporting
from hypha_worker.errors import NodeError
from hypha_worker.traces.job_metrics import JobMetrics
from hypha_worker.traces.job_traces import JobTraces

Content = Literal["slice", "push"]
Flow = Literal["receive", "transmit"]
Outcome = Literal["delivered", "failed"]


@dataclass
class Transfer:
    """A slice or push under way. The caller adds the size of each piece."""

    size_bytes: int = 0


Page = tuple[Callable[[], bytes], tuple[str | None, int]]
"""Returns the metrics in Prometheus's format, and the host (None: all addresses) and port where to serve them."""


class Telemetry(Instruments):
    """The node's instruments. Metrics that are not set here are observed where their state lives."""

    def __init__(self, meter: Meter | None = None, traces: JobTraces | None = None, page: Page | None = None) -> None:
        super().__init__(meter)
        self.traces = traces or JobTraces()
        self.job_metrics = JobMetrics(self)
        self.page = page
        self.requests = self.counter(node_metrics.REQUESTS)
        self.offers_sent = self.counter(node_metrics.OFFERS_SENT)
        self.offer_latency = self.histogram(node_metrics.OFFER_LATENCY)
        self.renewals = self.counter(node_metrics.LEASE_RENEWALS)
        self.expirations = self.counter(node_metrics.LEASE_EXPIRATIONS)
        self.dispatches = self.counter(node_metrics.DISPATCHES)
        self.jobs_started = self.counter(node_metrics.JOBS_STARTED)
        self.jobs_ended = self.counter(node_metrics.JOBS_ENDED)
        self.job_duration = self.histogram(node_metrics.JOB_DURATION)
        self.reports = self.counter(node_metrics.JOB_REPORTS)
        self.event_loop_lag = self.histogram(node_metrics.EVENT_LOOP_LAG)
        self._rate = self.histogram(node_metrics.TRANSFER_RATE)
        self._active: Counter[tuple[Content, Flow]] = Counter()
        self._bytes: PeerCounts[tuple[Content, Flow]] = PeerCounts()
        self._slices: PeerCounts[Outcome] = PeerCounts()
        self.observe(node_metrics.TRANSFERS_ACTIVE, self._transfers_active)
        self.observe(node_metrics.TRANSFERRED, self._transferred)
        self.observe(node_metrics.SLICES, self._slices_by_outcome)

    @contextmanager
    def transfer(self, peer: str, content: Content, flow: Flow) -> Iterator[Transfer]:
        """Measure a transfer with a peer, which succeeds if the block does."""
        transfer, began_s = Transfer(), perf_counter()
        outcome: Outcome = "failed"
        self._active[content, flow] += 1
        try:
            yield transfer
            outcome = "delivered"
        finally:
            self._active[content, flow] -= 1
            if content == "slice":
                self._slices.add(peer, transfer.size_bytes, {outcome: 1})
            if outcome == "delivered":
                size_bytes = transfer.size_bytes
                self._bytes.add(peer, size_bytes, {(content, flow): size_bytes})
                rate = size_bytes / max(perf_counter() - began_s, 1e-6)
                self._rate.record(rate, {"content": content, "network.io.direction": flow})

    def _transfers_active(self) -> Iterable[Observation]:
        return [
            Observation(number, {"content": content, "network.io.direction": flow})
            for (content, flow), number in list(self._active.items())
        ]

    def _transferred(self) -> Iterable[Observation]:
        return [
            Observation(size_bytes, {"peer": peer, "content": content, "network.io.direction": flow})
            for (content, flow), peer, size_bytes in self._bytes.all()
        ]

    def _slices_by_outcome(self) -> Iterable[Observation]:
        return [Observation(number, {"peer": peer, "outcome": outcome}) for outcome, peer, number in self._slices.all()]


@contextmanager
def open_telemetry(config: NodeConfig, peer_id: str, version: str) -> Iterator[Telemetry]:
    """Export what the configuration and the environment say. At the end, send the remaining data within a deadline.

    Raises:
        NodeError: the configured headers cannot be used.
    """
    try:
        settings = read_settings(os.environ, config)
    except SettingsError as error:
        raise NodeError(str(error)) from error
    defaults = {"service.name": "hypha-worker", "service.version": version, "service.instance.id": peer_id}
    with exporting(settings, defaults, version) as exports:
        page = (exports.page, settings.prometheus) if exports.page and settings.prometheus else None
        yield Telemetry(exports.meter, JobTraces(exports.spans, enabled=settings.enabled), page)
