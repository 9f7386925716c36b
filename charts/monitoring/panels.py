"""What a panel is, and the queries that panels are made of."""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

SELECTED: Final = 'namespace=~"$namespace",worker=~"$worker"'
"""The labels of the workers that the dashboard's reader has selected."""
WORKER: Final = "{{namespace}}/{{worker}}"
NODE: Final = 'job="hypha-worker"'
"""Selects metrics of a process, which the operator has too, of nodes."""
FROM_RESOURCES: Final = "From kube-state-metrics."
_BY_WORKER: Final = "namespace, worker"


class Query(NamedTuple):
    """A query, and what the legend calls each of its series."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """A panel of a dashboard.

    Attributes:
        unit: Grafana's name of the unit.
        queries: what it shows.
        kind: how Grafana draws it.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"


@dataclass(frozen=True)
class Dashboard:
    """A dashboard. Its `name` is also its id in Grafana and the name of its file."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def total(metric: str, *labels: str, where: str = "", suffix: str = "") -> Query:
    """Return the sum over what the labels do not tell apart, for each worker.

    Args:
        metric: the name of the series.
        labels: labels that tell series of a worker apart.
        where: more conditions on labels, as in PromQL.
        suffix: what the legend says after the worker's name.
    """
    return Query(f"sum by ({_by(labels)}) ({metric}{_selector(where)})", _legend(labels, suffix))


def most(metric: str, *labels: str, where: str = "", suffix: str = "") -> Query:
    """Return the greatest value among what the labels do not tell apart, for each worker."""
    return Query(f"max by ({_by(labels)}) ({metric}{_selector(where)})", _legend(labels, suffix))


def rate(counter: str, *labels: str, where: str = "", suffix: str = "") -> Query:
    """Return how much a counter grows per second."""
    expression = f"sum by ({_by(labels)}) (rate({counter}{_selector(where)}[$__rate_interval]))"
    return Query(expression, _legend(labels, suffix))


def last_hour(counter: str, *labels: str, where: str = "", suffix: str = "") -> Query:
    """Return how much a counter grew in the last hour."""
    return Query(f"sum by ({_by(labels)}) (increase({counter}{_selector(where)}[1h]))", _legend(labels, suffix))


def quantiles(histogram: str, *labels: str, where: str = "") -> tuple[Query, Query]:
    """Return the median and the 99th percentile of a histogram."""
    buckets = f"sum by (le, {_by(labels)}) (rate({histogram}_bucket{_selector(where)}[$__rate_interval]))"
    return (
        Query(f"histogram_quantile(0.5, {buckets})", _legend(labels, "median")),
        Query(f"histogram_quantile(0.99, {buckets})", _legend(labels, "p99")),
    )


def _selector(where: str) -> str:
    return "{" + ",".join(filter(None, (SELECTED, where))) + "}"


def _by(labels: tuple[str, ...]) -> str:
    return ", ".join((_BY_WORKER, *labels))


def _legend(labels: tuple[str, ...], suffix: str) -> str:
    return " ".join((WORKER, *(f"{{{{{label}}}}}" for label in labels), *filter(None, [suffix])))
