"""The collector and the Prometheus of the tests work."""

import time
from pathlib import Path

import httpx
import pytest

from e2e.monitoring import Collector, attributes, promtool, running_collector, running_prometheus
from support.waiting import until

RESOURCE = {"attributes": [{"key": "service.name", "value": {"stringValue": "hypha-worker"}}]}
NOW_NS = str(time.time_ns())
SPAN = {"traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "offer", "kind": 1}
METRIC = {"name": "hypha.jobs", "unit": "{job}", "gauge": {"dataPoints": [{"asInt": "3", "timeUnixNano": NOW_NS}]}}
RECORD = {"body": {"stringValue": "ready"}}


def batch(by_resource: str, by_scope: str, kind: str, item: object) -> object:
    return {by_resource: [{"resource": RESOURCE, by_scope: [{"scope": {"name": "hypha"}, kind: [item]}]}]}


SENT = {
    "traces": batch("resourceSpans", "scopeSpans", "spans", SPAN),
    "metrics": batch("resourceMetrics", "scopeMetrics", "metrics", METRIC),
    "logs": batch("resourceLogs", "scopeLogs", "logRecords", RECORD),
}


def names(collector: Collector) -> list[str]:
    return [item["name"] for item in (*collector.spans(), *collector.metrics())] + [
        record["body"]["stringValue"] for record in collector.logs()
    ]


def test_the_collector_keeps_what_it_receives(tmp_path: Path) -> None:
    with running_collector(tmp_path) as collector:
        for signal, body in SENT.items():
            httpx.post(f"{collector.http}/v1/{signal}", json=body, trust_env=False).raise_for_status()
        until(lambda: names(collector) == ["offer", "hypha.jobs", "ready"])
        (span,) = collector.spans()
        assert (span["resource"], span["scope"]) == ({"service.name": "hypha-worker"}, "hypha")
        assert attributes({"attributes": RESOURCE["attributes"]}) == {"service.name": "hypha-worker"}


def test_prometheus_scrapes_and_answers_queries(tmp_path: Path) -> None:
    with running_prometheus(tmp_path / "scraped", {}) as scraped:
        target = {"job_name": "p", "static_configs": [{"targets": [scraped.url.removeprefix("http://")]}]}
        config = {"global": {"scrape_interval": "100ms", "scrape_timeout": "100ms"}, "scrape_configs": [target]}
        with running_prometheus(tmp_path / "scraper", config) as prometheus:
            until(lambda: [sample.value for sample in prometheus.query("up{job='p'}")] == [1])
            with pytest.raises(AssertionError, match="parse error"):
                prometheus.query("sum(")


def test_promtool_refuses_rules_that_prometheus_would_refuse() -> None:
    with pytest.raises(AssertionError, match="could not parse expression"):
        promtool("check", "rules", stdin="groups: [{name: g, rules: [{alert: A, expr: 'sum('}]}]")
