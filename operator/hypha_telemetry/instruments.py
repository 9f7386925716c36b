"""Makes the instruments of metrics. Without a meter, they do nothing."""

from collections.abc import Callable, Iterable
from typing import Final

from opentelemetry.metrics import Counter, Histogram, Meter, NoOpMeter, Observation

from hypha_telemetry.metric import Kind, Metric

SCOPE: Final = "hypha"
"""The instrumentation scope of everything that our processes export."""

PROMETHEUS_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of pages for Prometheus."""

Read = Callable[[], Iterable[Observation]]
"""Returns the current values of a metric. Readers call it in threads of their own."""


class Instruments:
    """Makes instruments of one meter."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._meter = meter or NoOpMeter(SCOPE)

    def counter(self, metric: Metric) -> Counter:
        """Return a counter that the caller increases."""
        return self._meter.create_counter(metric.name, metric.unit, metric.description)

    def histogram(self, metric: Metric) -> Histogram:
        """Return a histogram in which the caller records values."""
        return self._meter.create_histogram(
            metric.name, metric.unit, metric.description, explicit_bucket_boundaries_advisory=metric.buckets or None
        )

    def observe(self, metric: Metric, read: Read) -> None:
        """Export what `read` returns whenever metrics are collected."""
        create = {
            Kind.COUNTER: self._meter.create_observable_counter,
            Kind.UP_DOWN_COUNTER: self._meter.create_observable_up_down_counter,
            Kind.GAUGE: self._meter.create_observable_gauge,
        }[metric.kind]
        create(metric.name, [lambda _options: read()], metric.unit, metric.description)
