"""The models: quantities, units, what the generator makes of them, and that its files are what it makes."""

import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hypha_contracts.text import MAX_CHARS
from hypha_contracts.units import QUANTITY_PATTERN, devices_needed, parse_quantity
from hypha_resources.__main__ import manifests, plain, templated
from hypha_resources.crd import RESOURCES, Resource, definition
from hypha_resources.job import Lease, redacted
from hypha_resources.roles import roles
from hypha_resources.worker import Gpu, HyphaWorkerSpec, Offer, ResourcesSpec
from hypha_resources.worker_jobs import Cache
from hypha_resources.worker_status import NodeStatus, Refusal
from support.hostile_text import HOSTILE
from support.resources import worker_manifest

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/hypha-worker/templates/crds"


@pytest.mark.parametrize("name", manifests())
class TestGeneratedFiles:
    def test_the_definitions_and_roles_in_the_repository_are_current(self, name: str):
        assert (ROOT / "crds" / name).read_text() == plain()[name], "run make crds"

    def test_the_chart_has_the_same_ones_behind_a_switch(self, name: str):
        text = templated()[name]
        inner = re.fullmatch(r"#.*\n\{\{- if \.Values\.crds\.install \}\}\n(.*)\{\{- end \}\}\n", text, re.DOTALL)
        assert inner
        labels = "    {{- with .Values.commonLabels }}\n    {{- toYaml . | nindent 4 }}\n    {{- end }}\n"
        without_labels = inner[1].replace(labels, "")
        assert "{{" not in without_labels
        content = list(yaml.safe_load_all(without_labels))
        assert inner[1].count(labels) == len(content)
        for manifest in content:
            assert manifest["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
            assert manifest["metadata"]["labels"].pop("app.kubernetes.io/name") == "hypha-worker"
            if not manifest["metadata"]["labels"]:
                del manifest["metadata"]["labels"]
        assert content == manifests()[name]
        if CHART.exists():
            assert (CHART / name).read_text() == text, "run make crds"


def test_the_clusters_own_roles_include_workers_and_jobs() -> None:
    """The controller manager adds the rules of roles with these labels to view, edit and admin."""
    into = {
        role["metadata"]["name"]: {label.rpartition("-")[2] for label in role["metadata"]["labels"]} for role in roles()
    }
    assert into == {"hypha-view": {"view"}, "hypha-edit": {"edit", "admin"}, "hypha-admin": {"admin"}}


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.kind)
class TestDefinitions:
    def test_every_text_and_list_of_a_specification_is_bounded(self, resource: Resource):
        schema = definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        unbounded = [path for path, part in _parts(schema) if _is_unbounded(part)]
        assert unbounded == []

    def test_nothing_is_defaulted_or_nullable(self, resource: Resource):
        parts = dict(_parts(definition(resource)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
        assert not [path for path, part in parts.items() if part.keys() & {"default", "nullable", "$ref", "title"}]


def _parts(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, part in schema.get("properties", {}).items():
        found += _parts(part, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += _parts(schema[key], f"{path}[]")
    return found


def _is_unbounded(part: dict[str, Any]) -> bool:
    if part.get("type") == "string":
        return not part.keys() & {"maxLength", "enum", "format"}
    return (part.get("type") == "array" and "maxItems" not in part) or (
        "additionalProperties" in part and "maxProperties" not in part
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2),
        ("500m", Decimal("0.5")),
        ("1Ki", 1024),
        ("1.5Gi", 1610612736),
        ("1e3", 1000),
        ("1E", 10**18),
        (".5", 0.5),
    ],
)
def test_a_quantity_has_the_value_that_kubernetes_defines(text, value):
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "1 Gi", "Gi", "-1", "1KB", "0x10", "1e", "1e9999", "nan"])
def test_text_that_is_not_a_quantity_is_refused(text):
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity(text)


@pytest.mark.parametrize("amount", ["0", "1e19", "16E"])
def test_an_amount_that_kubernetes_cannot_count_is_refused(amount):
    with pytest.raises(ValueError, match=r"(?s)cpu.*more than zero and at most"):
        ResourcesSpec(cpu=amount, memory="1Gi", storage="1Gi")


@given(st.text(alphabet="0123456789.eE+-KMGTPimunk", max_size=12))
def test_any_text_parses_as_a_quantity_or_is_refused(text):
    if re.fullmatch(QUANTITY_PATTERN, text) and "e" not in text.lower():
        assert parse_quantity(text) >= 0
    else:
        with suppress(ValueError):
            parse_quantity(text)


@given(gpu_gb=st.floats(0.001, 10_000), memory_gib=st.integers(1, 192))
def test_the_least_number_of_devices_that_suffices_is_used(gpu_gb, memory_gib):
    devices = devices_needed(gpu_gb, Gpu(count=8, memory=f"{memory_gib}Gi").memory_gb)
    per_device_gb = memory_gib * 2**30 / 1e9
    assert devices * per_device_gb >= gpu_gb * (1 - 1e-8)
    assert (devices - 1) * per_device_gb < gpu_gb


@given(count=st.integers(1, 1024), memory_gib=st.integers(1, 192))
def test_a_job_with_all_the_memory_of_a_worker_gets_all_its_devices(count, memory_gib):
    gpu = Gpu(count=count, memory=f"{memory_gib}Gi")
    capacity = ResourcesSpec(cpu="1", memory="1Gi", storage="1Gi", gpu=gpu).capacity
    assert devices_needed(capacity.gpu, gpu.memory_gb) == count


def test_capacity_is_in_the_units_of_the_network():
    spec = HyphaWorkerSpec.model_validate(worker_manifest("ns")["spec"])
    capacity = spec.resources.capacity
    assert (capacity.cpu, capacity.memory) == (32, 137.438953472)
    assert capacity.gpu == pytest.approx(2 * 48 * 2**30 / 1e9)


@pytest.mark.parametrize(
    ("offer", "floor"), [({}, 100), ({"price": 10}, 10), ({"price": 200}, 100), ({"price": 200, "floor": 150}, 150)]
)
def test_the_default_floor_is_at_most_the_price(offer, floor):
    assert Offer.model_validate(offer).floor == floor


def test_a_gpu_without_memory_is_refused():
    with pytest.raises(ValidationError, match="not more than zero"):
        Gpu(count=1, memory="0Gi")


@pytest.mark.parametrize("size", ["500m", "1n", 0.5])
def test_a_cache_of_less_than_one_byte_is_refused(size):
    with pytest.raises(ValidationError, match="is less than one byte"):
        Cache(claim="models", max_bytes=size)
    assert Cache(claim="models", max_bytes="1").max_bytes == "1"


def test_a_deadline_without_a_time_zone_is_refused():
    with pytest.raises(ValidationError, match="timezone"):
        Lease(id=uuid4(), deadline="2036-01-01T00:00:00")


def test_a_redacted_job_has_no_tokens_and_only_scheme_and_host_of_its_addresses():
    job = {
        "fetch": [
            {"type": "huggingface", "repository": "a/b", "token": "hf_secret"},
            {"type": "huggingface", "repository": "https://me:hf_secret@hub.example.org/secret"},
        ],
        "data": {"type": "uri", "value": "https://me:secret@example.org:8443/secret/data?sig=secret#secret"},
        "model": {"artifact": {"type": "uri", "value": "secret://[", "nested": [{"type": "uri", "value": "secret"}]}},
        "slices": {"type": "scheduler", "peer": "p", "dataset": "s3://bucket/digits"},
    }
    clean = redacted(job)
    assert "secret" not in str(clean)
    assert clean["data"]["value"] == "https://example.org"
    assert clean["fetch"] == [
        {"type": "huggingface", "repository": "a/b"},
        {"type": "huggingface", "repository": "https://hub.example.org/..."},
    ]
    assert clean["slices"]["dataset"] == "s3://bucket/digits"


def test_text_of_others_in_the_status_of_a_node_is_escaped_and_cut():
    text = "".join(HOSTILE) + 10_000 * "x"
    refusal = Refusal(reason="NoExecutor", message=text)
    node = NodeStatus(
        problem=text, circuits=[text], gateways=[text], listening=[text], requests={"lastRefusal": refusal}
    )
    shown = [node.problem, node.requests.last_refusal.message, *node.circuits, *node.gateways, *node.listening]
    assert all(item.isprintable() and len(item) == MAX_CHARS for item in shown)
