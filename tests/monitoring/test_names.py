"""Every metric and label of the alerts and dashboards exists: in the catalogue, or in what kube-state-metrics exports.

For kube-state-metrics only the form of its configuration is tested, because none runs here.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
import yaml

from chart.rendering import CHART
from charts.monitoring.__main__ import main
from charts.monitoring.alerts import ALERTS
from e2e.cluster.tools import ROOT
from e2e.monitoring import Prometheus, running_prometheus
from hypha_resources.job import Phase
from hypha_telemetry.catalogue import CATALOGUE
from hypha_telemetry.metric import Kind
from support.dashboards import alert_queries, dashboard_queries, is_about_resources, selectors

TARGET = {"job", "namespace", "worker"}
"""Labels that Prometheus adds to the series of a target."""
RESOURCES = yaml.safe_load((CHART / "files" / "kube-state-metrics.yaml").read_text())["spec"]["resources"]

Known = Mapping[str, set[str]]
"""By the name of a series, the labels that it has."""


def catalogued() -> Known:
    """Return the series of our processes. Prometheus renames an attribute that has the name of a target's label."""
    known = {"up": TARGET}
    for metric in (metric for metrics in CATALOGUE.values() for metric in metrics):
        names = {attribute.replace(".", "_") for attribute in metric.attributes}
        labels = TARGET | {f"exported_{name}" if name in TARGET else name for name in names}
        if metric.kind is Kind.HISTOGRAM:
            known |= {f"{metric.prometheus_name}_{part}": labels for part in ("count", "sum")}
            known[f"{metric.prometheus_name}_bucket"] = labels | {"le"}
        else:
            known[metric.prometheus_name] = labels
    return known


def of_resources() -> Known:
    known = {}
    for resource in RESOURCES:
        for metric in resource["metrics"]:
            (form,) = (value for key, value in metric["each"].items() if key != "type")
            labels = {*resource["labelsFromPath"], *form.get("labelsFromPath", ())}
            labels |= {form[key] for key in ("labelName", "labelFromKey") if key in form}
            known[f"{resource['metricNamePrefix']}_{metric['name']}"] = labels
    return known


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that parses queries."""
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), {}) as running:
        yield running


def test_every_metric_and_label_of_a_query_exists(prometheus: Prometheus) -> None:
    known = {**catalogued(), **of_resources()}
    wrong = [
        (selector.metric, selector.labels - known.get(selector.metric, set()), expression)
        for expression in (*dashboard_queries(), *alert_queries())
        for selector in selectors(prometheus, expression)
        if not selector.labels <= known.get(selector.metric, set()) or selector.metric not in known
    ]
    assert wrong == []


def test_counters_are_only_read_as_rates_and_increases() -> None:
    counters = {m.prometheus_name for ms in CATALOGUE.values() for m in ms if m.kind is Kind.COUNTER}
    for expression in (*dashboard_queries(), *alert_queries()):
        for name in counters:
            parts = expression.split(f"{name}{{")[:-1]
            assert all(part.endswith(("rate(", "increase(")) for part in parts), expression


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource["groupVersionKind"]["kind"])
def test_kube_state_metrics_reads_only_fields_that_exist(resource: dict[str, Any]) -> None:
    kind = resource["groupVersionKind"]
    definition = yaml.safe_load((ROOT / "crds" / f"{kind['kind'].lower()}s.yaml").read_text())["spec"]
    assert (definition["group"], definition["versions"][0]["name"]) == (kind["group"], kind["version"])
    schema = definition["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"properties": {"name": {}, "namespace": {}}}

    def at(path: list[str], within: Any = schema) -> Any:
        for part in path:
            within = within.get("items", within)["properties"][part]
        return within

    for path in resource["labelsFromPath"].values():
        at(path)
    for metric in resource["metrics"]:
        (form,) = (value for key, value in metric["each"].items() if key != "type")
        within = at(form.get("path", []))
        for path in (*form.get("labelsFromPath", {}).values(), form.get("valueFrom", [])):
            at(path, within)
        if "labelFromKey" in form:
            assert "additionalProperties" in within
        if metric["name"] == "status_phase":
            assert form["list"] == list(get_args(Phase))


def test_the_dashboards_use_what_kube_state_metrics_exports(prometheus: Prometheus) -> None:
    asked = {s.metric for e in dashboard_queries() if is_about_resources(e) for s in selectors(prometheus, e)}
    assert len(asked & of_resources().keys()) >= 3


def test_generated_files_are_up_to_date() -> None:
    assert main(["--check"]) is None


def test_the_texts_of_an_alert_name_only_labels_that_its_series_have(prometheus: Prometheus) -> None:
    known = {**catalogued(), **of_resources()}
    for alert in ALERTS:
        named = set(re.findall(r"\$labels\.(\w+)", f"{alert.summary} {alert.remedy}"))
        grouped = re.findall(r"by \(([^)]*)\)", alert.expression)
        kept = [set(labels.split(", ")) for labels in grouped] or [
            known[selector.metric] for selector in selectors(prometheus, alert.expression)
        ]
        assert all(named <= labels for labels in kept), alert.name
