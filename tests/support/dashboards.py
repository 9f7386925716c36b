"""The queries of the chart's dashboards and alerts, and a Prometheus that runs them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from charts.monitoring.alerts import ALERTS
from charts.monitoring.dashboards import DASHBOARDS
from e2e.monitoring import Prometheus
from support.waiting import until

VARIABLES = {"$namespace": ".*", "$worker": ".*", "$__rate_interval": "1m"}


def dashboard_queries() -> list[str]:
    """Return every query of every panel, with values in the place of Grafana's variables."""
    found = []
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                expression = query.expression
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                found.append(expression)
    return found


def alert_queries() -> list[str]:
    """Return the expressions of all alerts."""
    return [alert.expression for alert in ALERTS]


def is_about_the_operator(expression: str) -> bool:
    return "hypha_operator_" in expression or 'job="hypha-operator"' in expression


def is_about_resources(expression: str) -> bool:
    """Whether kube-state-metrics provides the figures."""
    return "kube_" in expression


def scraping(job: str, address: str, **labels: str) -> dict[str, Any]:
    """Return the configuration of a Prometheus that scrapes a target four times a second."""
    target = {"job_name": job, "static_configs": [{"targets": [address], "labels": labels}]}
    return {"global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"}, "scrape_configs": [target]}


def assert_series(prometheus: Prometheus, expressions: Iterable[str]) -> None:
    """Wait until each query has returned a series with a finite value once; fail with those that have not."""
    missing = list(expressions)

    def all_found() -> bool:
        missing[:] = [expression for expression in missing if not prometheus.query(expression)]
        return not missing

    try:
        until(all_found)
    except AssertionError:
        raise AssertionError("these queries return no series:\n" + "\n".join(missing)) from None


class Selector(NamedTuple):
    """A metric that a query reads, with the labels by which it selects or groups the metric's series."""

    metric: str
    labels: frozenset[str]


def selectors(prometheus: Prometheus, expression: str) -> Iterator[Selector]:
    """Yield what a query reads, as Prometheus parses it."""
    yield from _selectors(prometheus.get("/api/v1/parse_query", query=expression)["data"], frozenset())


def _selectors(node: Any, labels: frozenset[str]) -> Iterator[Selector]:
    if isinstance(node, list):
        for item in node:
            yield from _selectors(item, labels)
    elif isinstance(node, dict):
        if "matchers" in node:
            matched = {matcher["name"] for matcher in node["matchers"]} - {"__name__"}
            yield Selector(node["name"], labels | matched)
            return
        grouped = labels | frozenset(node.get("grouping") or ())
        for value in node.values():
            yield from _selectors(value, grouped)
