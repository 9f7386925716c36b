"""Sends metrics and traces to a collector by OTLP over HTTP, in threads of the OpenTelemetry SDK."""

from threading import Thread
from typing import Final

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)

from hypha_contracts.node_config import NodeConfig

_EXPORT_TIMEOUT_S: Final = 5
_EXPORT_EVERY_MS: Final = 10_000
_SHUTDOWN_S: Final = 5.0


class Exporters:
    """The exporters of one node."""

    def __init__(self, config: NodeConfig, scope: str, peer_id: str, version: str) -> None:
        base = str(config.telemetry_endpoint).rstrip("/")
        headers = {name: value.get_secret_value() for name, value in config.telemetry_headers.items()}
        attributes = {"service.name": "hypha-worker", "service.version": version, "service.instance.id": peer_id}
        resource = Resource.create(attributes | config.telemetry_attributes)
        metrics = OTLPMetricExporter(f"{base}/v1/metrics", headers=headers, timeout=_EXPORT_TIMEOUT_S)
        reader = PeriodicExportingMetricReader(metrics, _EXPORT_EVERY_MS, _EXPORT_TIMEOUT_S * 1000)
        self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        self.meter = self._meters.get_meter(scope, version)
        spans = OTLPSpanExporter(f"{base}/v1/traces", headers=headers, timeout=_EXPORT_TIMEOUT_S)
        self._traces = TracerProvider(make_sampler(config), resource, shutdown_on_exit=False)
        self._traces.add_span_processor(BatchSpanProcessor(spans))
        self.tracer = self._traces.get_tracer(scope, version)

    def shutdown(self) -> None:
        """Send the remaining data. Waits at most 5 s for the collector."""
        threads = [
            Thread(target=self._meters.shutdown, args=[_SHUTDOWN_S * 1000], daemon=True),
            Thread(target=self._traces.shutdown, daemon=True),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_SHUTDOWN_S)


def make_sampler(config: NodeConfig) -> Sampler:
    """Return the configured sampler. The default samples all traces."""
    ratio = config.telemetry_sample_ratio
    samplers: dict[str, Sampler] = {
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(ratio),
        "parentbased_traceidratio": ParentBasedTraceIdRatio(ratio),
    }
    return samplers.get(config.telemetry_sampler or "", ALWAYS_ON)
