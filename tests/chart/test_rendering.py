"""The chart, as Helm 3 and Helm 4 render it."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
import yaml

from chart.rendering import CHART, EVERYTHING, HELMS, VARIANTS, Manifest, helm, of_kind, one, render
from e2e.cluster.tools import ROOT
from hypha_contracts.logs import LogFormat
from hypha_contracts.names import WORKER_LABEL, controller_labels
from hypha_operator.jobs.children import network_policy
from hypha_operator.pods.addons import NO_MESH_ANNOTATIONS, NO_MESH_LABELS
from hypha_operator.settings import Settings
from support.operator_objects import hypha_job, job_spec, worker_spec

variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())
helms = pytest.mark.parametrize("which", HELMS)


@helms
@variants
def test_lint_finds_nothing(which: str, values: Manifest) -> None:
    helm(which, "lint", "--strict", str(CHART), values=values)


@variants
def test_both_helms_render_the_same(values: Manifest) -> None:
    old, new = (sorted(map(json.dumps, render(which, values))) for which in HELMS)
    assert old == new


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replicas": 2}, "replicas"),
        ({"images": {"operator": {"repo": "x"}}}, "repo"),
        ({"images": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"images": {"worker": {"digest": "latest"}}}, "digest"),
        ({"worker": {"create": True}}, "identity"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@helms
def test_an_invalid_value_is_refused(which: str, values: Manifest, complaint: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render(which, values)
    assert complaint in refused.value.stderr


@pytest.mark.parametrize("enabled", [True, False])
@helms
def test_another_chart_may_enable_it_as_its_dependency(which: str, enabled: bool, tmp_path: Path) -> None:
    parent = {
        "apiVersion": "v2",
        "name": "parent",
        "version": "1.0.0",
        "dependencies": [{"name": "hypha-worker", "version": "*", "condition": "hypha-worker.enabled"}],
    }
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(parent))
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({"hypha-worker": {"enabled": enabled}}))
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "hypha-worker").symlink_to(CHART)
    rendered = list(yaml.safe_load_all(helm(which, "template", "parent", str(tmp_path))))
    assert bool(of_kind(rendered, "Deployment")) is enabled


def test_every_value_has_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Manifest, part: Manifest, path: str) -> None:
        part = schema["definitions"]["image"] if "$ref" in part else part
        if "properties" not in part:
            return
        assert part["additionalProperties"] is False, path
        assert set(values) == set(part["properties"]), path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, part["properties"][key], f"{path}.{key}")

    for name in ("global", "enabled"):  # Helm's own
        del schema["properties"][name]
    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")


def test_the_readme_lists_the_values_as_they_are() -> None:
    subprocess.run([sys.executable, str(ROOT / "charts" / "chart_docs.py"), "--check"], check=True, timeout=60)


def test_the_chart_installs_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_images_are_named_by_registry_repository_and_tag_or_digest() -> None:
    container = _operator(render(values=EVERYTHING))
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert container["image"] == "registry.example.org/hypha/operator:0.1.0"
    assert environment["HYPHA_WORKER_IMAGE"] == "registry.example.org/hypha/worker:1.2.3"
    assert environment["HYPHA_TRAINER_IMAGE"] == "registry.example.org/hypha/trainer@sha256:" + "a" * 64


def test_the_operator_reads_its_environment() -> None:
    manifests = render(values=EVERYTHING)
    environment = {variable["name"]: variable.get("value", "pod") for variable in _operator(manifests)["env"]}
    settings = Settings.from_environment(environment)
    assert settings.bridge_image == "registry.example.org/hypha/bridge:0.1.0"
    assert settings.parameter_server_image == "registry.example.org/hypha/parameter-server:0.1.0"
    assert settings.replica == "pod"


@pytest.mark.parametrize(
    ("user_ids", "serves", "named"),
    [
        ("auto", (), True),
        ("auto", ("security.openshift.io/v1",), False),
        (True, ("security.openshift.io/v1",), True),
        (False, (), False),
    ],
)
@helms
def test_pods_name_their_user_unless_openshift_chooses_it(
    which: str, user_ids: object, serves: tuple[str, ...], named: bool
) -> None:
    manifests = render(which, {"podSecurity": {"userIds": user_ids}}, serves=serves)
    variables = {variable["name"]: variable["value"] for variable in _operator(manifests)["env"] if "value" in variable}
    assert Settings.from_environment(variables).user_ids is named
    context = one(manifests, "Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert context["runAsNonRoot"] is True
    assert {field in context for field in ("runAsUser", "runAsGroup", "fsGroup")} == {named}


def test_log_formats_are_those_that_the_operator_knows() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    logging = schema["properties"]["operator"]["properties"]["logging"]["properties"]
    assert logging["format"]["enum"] == list(get_args(LogFormat))


def test_definitions_equal_those_in_crds_and_stay_after_an_uninstall() -> None:
    rendered = of_kind(render(), "CustomResourceDefinition")
    for definition in rendered:
        assert definition["metadata"].pop("annotations").pop("helm.sh/resource-policy") == "keep"
        definition["metadata"].pop("labels", None)
    written = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("hypha*.yaml"))]
    assert [d["metadata"]["name"] for d in written] == ["hyphajobs.hypha.space", "hyphaworkers.hypha.space"]
    assert {d["metadata"]["name"]: d["spec"] for d in rendered} == {d["metadata"]["name"]: d["spec"] for d in written}
    assert not of_kind(render(values={"crds": {"install": False}}), "CustomResourceDefinition")


SWITCHES = {
    "serviceMonitor": {"ServiceMonitor"},
    "podMonitor": {"PodMonitor"},
    "prometheusRule": {"PrometheusRule"},
    "dashboards": {"ConfigMap"},
    "kubeStateMetrics": {"ConfigMap", "ClusterRole"},
}


def switched(name: str, **more: object) -> list[Manifest]:
    """Return the objects that one switch of the metrics adds."""
    before = render()
    return [m for m in render(values={"metrics": {name: {"enabled": True, **more}}}) if m not in before]


def test_every_switch_of_the_metrics_is_off_by_default_and_adds_only_its_objects() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["metrics"]
    assert {name: value["enabled"] for name, value in values.items()} == dict.fromkeys(SWITCHES, False)
    for name, kinds in SWITCHES.items():
        added = {m["kind"] for m in switched(name)}
        assert added == kinds, name


def test_the_pod_monitor_selects_controllers_of_the_namespaces_that_the_operator_serves() -> None:
    one_namespace = one(render(values={"watchNamespace": "n", **EVERYTHING}), "PodMonitor")["spec"]
    assert one_namespace["namespaceSelector"] == {"matchNames": ["n"]}
    monitor = one(switched("podMonitor"), "PodMonitor")["spec"]
    assert monitor["namespaceSelector"] == {"any": True}
    assert monitor["selector"]["matchLabels"].items() <= controller_labels("w").items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    assert WORKER_LABEL == "hypha.space/worker"
    assert {"sourceLabels": ["__meta_kubernetes_pod_label_hypha_space_worker"], "targetLabel": "worker"} in endpoint[
        "relabelings"
    ]


def test_controllers_serve_metrics_to_those_whom_the_values_name() -> None:
    readers = [{"namespaceSelector": {"matchLabels": {"a": "b"}}}]
    values = {"networkPolicy": {"metricsFrom": readers}}
    for given, expected in (({}, Settings.metrics_from), (values, tuple(readers))):
        environment = {v["name"]: v.get("value") for v in _operator(render(values=given))["env"]}
        assert Settings.from_environment(environment).metrics_from == expected


def test_the_rules_and_dashboards_are_those_of_the_files() -> None:
    rule = one(switched("prometheusRule"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
    config_map = one(switched("dashboards"), "ConfigMap")
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config_map["data"] == {path.name: path.read_text() for path in (CHART / "dashboards").iterdir()}


def test_the_account_of_kube_state_metrics_may_read_only_our_resources_and_definitions() -> None:
    added = switched("kubeStateMetrics", serviceAccount={"name": "ksm", "namespace": "monitoring"})
    role, binding = one(added, "ClusterRole"), one(added, "ClusterRoleBinding")
    assert [(rule["resources"], rule["verbs"]) for rule in role["rules"]] == [
        (["hyphaworkers", "hyphajobs"], ["list", "watch"]),
        (["customresourcedefinitions"], ["list", "watch"]),
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "ksm", "namespace": "monitoring"}]
    config_map = one(added, "ConfigMap")
    assert config_map["metadata"]["namespace"] == "monitoring"
    assert yaml.safe_load(config_map["data"]["config.yaml"])["kind"] == "CustomResourceStateMetrics"


def test_the_values_of_the_page_about_monitoring_turn_everything_on() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    values = yaml.safe_load(page.partition("<<EOF\n")[2].partition("EOF\n")[0])
    assert {name: value["enabled"] for name, value in values["metrics"].items()} == dict.fromkeys(SWITCHES, True)
    mounted = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["kube-state-metrics"]["volumes"]
    config_maps = {
        m["metadata"]["name"]: m["metadata"]["namespace"] for m in of_kind(render(values=values), "ConfigMap")
    }
    assert config_maps[mounted[0]["configMap"]["name"]] == "monitoring"


@variants
def test_the_common_labels_are_on_every_object(values: Manifest) -> None:
    manifests = render(values=values | {"commonLabels": {"team": "training"}})
    assert [m["kind"] for m in manifests if m["metadata"]["labels"].get("team") != "training"] == []


def test_the_hooks_end_where_a_mesh_adds_its_proxy_to_pods() -> None:
    manifests = render()
    (test,) = (pod["metadata"] for pod in of_kind(manifests, "Pod"))
    (uninstall,) = (job["spec"]["template"]["metadata"] for job in of_kind(manifests, "Job"))
    for metadata in (test, uninstall):
        assert NO_MESH_LABELS.items() <= metadata["labels"].items()
        assert NO_MESH_ANNOTATIONS.items() <= metadata["annotations"].items()


def test_the_operator_reaches_name_servers_at_the_same_ports_as_jobs() -> None:
    """A policy applies behind a Service, to the ports of the pods."""
    (policy,) = of_kind(render(values=EVERYTHING), "NetworkPolicy")
    job = network_policy(hypha_job(), job_spec(), worker_spec())
    dns = [rule for rule in job["spec"]["egress"] if {port.get("port") for port in rule["ports"]} & {53, 5353}]
    assert len(dns) == 2
    assert all(rule in policy["spec"]["egress"] for rule in dns)


def test_names_without_a_namespace_differ_between_releases() -> None:
    def cluster_names(namespace: str) -> set[str]:
        return {
            f"{m['kind']}/{m['metadata']['name']}"
            for m in render(values={"crds": {"install": False}}, namespace=namespace)
            if m["kind"].startswith("Cluster")
        }

    assert not cluster_names("a") & cluster_names("b")


def _operator(manifests: list[Manifest]) -> Manifest:
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(container)
