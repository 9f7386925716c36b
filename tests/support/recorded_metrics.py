"""Instruments of the node whose figures a test reads."""

from collections.abc import Callable
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from hypha_telemetry.metric import Metric
from hypha_worker.telemetry import Telemetry

Figures = dict[tuple[str, ...], float]


class RecordedMetrics:
    """Telemetry, and what it would export now: figures by the values of attributes, in the order of the catalogue."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.telemetry = Telemetry(MeterProvider([self._reader]).get_meter("tests"))

    def of(self, metric: Metric) -> Figures:
        """Return the values of a metric, of a histogram the counts."""
        return self._figures(metric, lambda point: point.count if hasattr(point, "count") else point.value)

    def sums_of(self, metric: Metric) -> Figures:
        """Return the sums of a histogram."""
        return self._figures(metric, lambda point: point.sum)

    def _figures(self, metric: Metric, figure: Callable[[Any], float]) -> Figures:
        data: Any = self._reader.get_metrics_data()
        exported = (
            exported
            for group in (data.resource_metrics if data else ())
            for scope in group.scope_metrics
            for exported in scope.metrics
            if exported.name == metric.name
        )
        return {
            tuple(str(point.attributes[name]) for name in metric.attributes if name in point.attributes): figure(point)
            for found in exported
            for point in found.data.data_points
        }
