"""What the node measures and traces, by OpenTelemetry. Without a configured endpoint every instrument does nothing."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeter, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NoOpTracer, Tracer

from hypha_worker.config import Config

logger = logging.getLogger(__name__)

_SCOPE: Final = "hypha_worker"
_EXPORT_TIMEOUT_S: Final = 5
_EXPORT_EVERY_MS: Final = 10_000
_SHUTDOWN_S: Final = 5.0


class Telemetry:
    """The node's instruments; names follow OpenTelemetry's conventions, durations are seconds, sizes bytes."""

    def __init__(self, meter: Meter | None = None, tracer: Tracer | None = None) -> None:
        meter = meter or NoOpMeter(_SCOPE)
        self._meter = meter
        self.tracer = tracer or NoOpTracer()
        self.requests = meter.create_counter(
            "hypha.worker.requests", "{request}", "Requests of schedulers, by what was decided"
        )
        self.offers = meter.create_counter("hypha.worker.offers", "{offer}", "Offers, by what became of them")
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
        """Export what `read` returns whenever metrics are collected; it runs in another thread."""

        def collect(_options: CallbackOptions) -> Iterable[Observation]:
            return read()

        self._meter.create_observable_gauge(name, [collect], unit, description)


def make_sampler(config: Config) -> Sampler:
    """Return the configured sampler; all traces if none is."""
    ratio = config.telemetry_sample_ratio
    match config.telemetry_sampler:
        case "always_off":
            return ALWAYS_OFF
        case "traceidratio":
            return TraceIdRatioBased(ratio)
        case "parentbased_traceidratio":
            return ParentBasedTraceIdRatio(ratio)
        case _:
            return ALWAYS_ON


@contextmanager
def open_telemetry(config: Config, peer_id: str, version: str) -> Iterator[Telemetry]:
    """Export to the configured endpoint for as long as the context lasts; what is left is sent within a deadline."""
    if config.telemetry_endpoint is None:
        yield Telemetry()
        return
    if config.telemetry_protocol != "http/protobuf":
        logger.warning(
            'telemetry_protocol = "%s" is not supported, nothing is exported; use "http/protobuf", which collectors '
            "serve on port 4318",
            config.telemetry_protocol,
        )
        yield Telemetry()
        return
    attributes = {"service.name": "hypha-worker", "service.version": version, "service.instance.id": peer_id}
    resource = Resource.create(attributes | config.telemetry_attributes)
    reader, processor = _exporters(config)
    meters = MeterProvider([reader], resource, shutdown_on_exit=False)
    traces = TracerProvider(make_sampler(config), resource, shutdown_on_exit=False)
    traces.add_span_processor(processor)
    try:
        yield Telemetry(meters.get_meter(_SCOPE, version), traces.get_tracer(_SCOPE, version))
    finally:
        meters.shutdown(timeout_millis=_SHUTDOWN_S * 1000)
        traces.shutdown()


def _exporters(config: Config) -> tuple[MetricReader, SpanProcessor]:
    # Only who exports pays for the import of an HTTP client and protobuf.
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    base = str(config.telemetry_endpoint).rstrip("/")
    headers = {name: value.get_secret_value() for name, value in config.telemetry_headers.items()}
    metrics = OTLPMetricExporter(f"{base}/v1/metrics", headers=headers, timeout=_EXPORT_TIMEOUT_S)
    spans = OTLPSpanExporter(f"{base}/v1/traces", headers=headers, timeout=_EXPORT_TIMEOUT_S)
    return (
        PeriodicExportingMetricReader(metrics, _EXPORT_EVERY_MS, _EXPORT_TIMEOUT_S * 1000),
        BatchSpanProcessor(spans, export_timeout_millis=_EXPORT_TIMEOUT_S * 1000),
    )
