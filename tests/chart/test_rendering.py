"""The chart, as Helm 3 and Helm 4 render it."""

import json
import subprocess
import tomllib
from typing import get_args

import pytest
import yaml

from chart.rendering import CHART, EVERYTHING, HELMS, VARIANTS, Manifest, helm, of_kind, one, render
from e2e.cluster.tools import ROOT
from hypha_contracts.logs import LogFormat
from hypha_operator.settings import Settings

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


def test_every_value_has_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Manifest, part: Manifest, path: str) -> None:
        part = schema["definitions"]["image"] if "$ref" in part else part
        if "properties" not in part:
            return
        assert part["additionalProperties"] is False, path
        assert set(values) == set(part["properties"]) - {"global"}, path
        for key, value in values.items():
            if isinstance(value, dict):
                compare(value, part["properties"][key], f"{path}.{key}")

    compare(yaml.safe_load((CHART / "values.yaml").read_text()), schema, "values")


def test_the_readme_lists_the_values_as_they_are() -> None:
    subprocess.run(["python3", str(ROOT / "charts" / "chart_docs.py"), "--check"], check=True, timeout=60)


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
    environment = {variable["name"]: variable["value"] for variable in _operator(manifests)["env"]}
    settings = Settings.from_environment(environment)
    assert settings.bridge_image == "registry.example.org/hypha/bridge:0.1.0"
    assert settings.parameter_server_image == "registry.example.org/hypha/parameter-server:0.1.0"
    assert one(manifests, "ClusterRole", settings.token_reviewer_role)


def test_log_formats_are_those_that_the_operator_knows() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    logging = schema["properties"]["operator"]["properties"]["logging"]["properties"]
    assert logging["format"]["enum"] == list(get_args(LogFormat))


def test_definitions_equal_those_in_crds_and_stay_after_an_uninstall() -> None:
    rendered = of_kind(render(), "CustomResourceDefinition")
    for definition in rendered:
        assert definition["metadata"].pop("annotations").pop("helm.sh/resource-policy") == "keep"
        definition["metadata"].pop("labels", None)
    written = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    assert [d["metadata"]["name"] for d in written] == ["hyphajobs.hypha.space", "hyphaworkers.hypha.space"]
    assert {d["metadata"]["name"]: d["spec"] for d in rendered} == {d["metadata"]["name"]: d["spec"] for d in written}
    assert not of_kind(render(values={"crds": {"install": False}}), "CustomResourceDefinition")


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
