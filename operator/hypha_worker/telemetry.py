"""Metrics and traces of the node, by OpenTelemetry. Without a configured endpoint the instruments do nothing."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry.metrics import Meter, NoOpMeter, Observation
from opentelemetry.trace import NoOpTracer, Tracer

from hypha_contracts.node_config import NodeConfig

logger = logging.getLogger(__name__)

SCOPE: Final = "hypha_worker"


class Telemetry:
    """The node's instruments. Names follow OpenTelemetry's conventions. Durations are seconds, sizes are bytes."""

    def __init__(self, meter: Meter | None = None, tracer: Tracer | None = None) -> None:
        meter = meter or NoOpMeter(SCOPE)
        self._meter = meter
        self.tracer = tracer or NoOpTracer()
        self.requests = meter.create_counter(
            "hypha.worker.requests", "{request}", "Requests of schedulers, by decision"
        )
        self.offers = meter.create_counter("hypha.worker.offers", "{offer}", "Offers, by outcome")
        self.offer_latency = meter.create_histogram(
            "hypha.worker.offer.latency", "s", "From a request's arrival to the scheduler's receipt of the offer"
        )
        self.renewals = meter.create_counter("hypha.worker.lease.renewals", "{renewal}", "Lease renewals, by outcome")
        self.expirations = meter.create_counter("hypha.worker.lease.expirations", "{lease}", "Leases that expired")
        self.jobs_started = meter.create_counter("hypha.worker.jobs.started", "{job}", "Jobs started, by executor")
        self.jobs_ended = meter.create_counter("hypha.worker.jobs.ended", "{job}", "Jobs ended, by executor and status")
        self.job_duration = meter.create_histogram("hypha.worker.job.duration", "s", "How long jobs ran")
        self.transferred = meter.create_counter("hypha.worker.transfer", "By", "Bytes moved for jobs, by direction")
        self.slices = meter.create_counter("hypha.worker.slices", "{slice}", "Slices fetched for jobs")

    def observe(self, name: str, unit: str, description: str, read: Callable[[], Iterable[Observation]]) -> None:
        """Export the result of `read` whenever metrics are collected. It runs in another thread."""
        self._meter.create_observable_gauge(name, [lambda _options: read()], unit, description)


@contextmanager
def open_telemetry(config: NodeConfig, peer_id: str, version: str) -> Iterator[Telemetry]:
    """Export to the configured endpoint. At the end, send the remaining data within a deadline."""
    if config.telemetry_endpoint is not None and config.telemetry_protocol == "http/protobuf":
        from hypha_worker.telemetry_export import Exporters  # noqa: PLC0415 - the SDK is slow to import

        exporters = Exporters(config, SCOPE, peer_id, version)
        try:
            yield Telemetry(exporters.meter, exporters.tracer)
        finally:
            exporters.shutdown()
        return
    if config.telemetry_endpoint is not None:
        logger.warning(
            'telemetry_protocol = "%s" is not supported, so nothing is exported. Use "http/protobuf", which collectors '
            "serve on port 4318.",
            config.telemetry_protocol,
        )
    yield Telemetry()
