"""The catalogue of metrics and the page that lists them."""

from collections import Counter
from pathlib import Path

from opentelemetry.semconv._incubating.metrics import process_metrics as conventions

from e2e.cluster.tools import ROOT
from hypha_telemetry.catalogue import CATALOGUE, with_tables
from hypha_telemetry.metric import Kind
from hypha_telemetry.process_metrics import PROCESS_METRICS

EVERY = [metric for metrics in CATALOGUE.values() for metric in metrics]


def test_the_page_lists_every_metric_as_it_is() -> None:
    page = Path(ROOT, "docs", "telemetry.md").read_text()
    assert with_tables(page) == page, "run `make metrics`"


def test_no_two_metrics_have_the_same_name() -> None:
    assert max(Counter(metric.name for metric in EVERY).values()) == 1
    assert max(Counter(metric.prometheus_name for metric in EVERY).values()) == 1


def test_only_histograms_have_buckets() -> None:
    assert all(bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM) for metric in EVERY)


def test_metrics_of_a_process_follow_the_semantic_conventions() -> None:
    names = {value for name, value in vars(conventions).items() if name.startswith("PROCESS_")}
    assert {metric.name for metric in PROCESS_METRICS} <= names
