"""The API server stores manifests as they are in Git: it defaults, normalises and drops nothing."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import EVERYTHING, Manifest, render
from e2e.cluster.tools import ROOT
from hypha_resources.worker import HyphaWorkerSpec
from support.api_server import ApiServer

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
_CLUSTER_SCOPED = ("ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass")
examples = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


@examples
def test_an_example_applied_twice_changes_nothing(example: Path, definitions: ApiServer, namespace: str) -> None:
    """A Job changes, because the API server labels its pods with a uid."""
    manifests = [manifest for manifest in _read(example, namespace) if manifest["kind"] != "Job"]
    assert _apply(definitions, manifests) == _apply(definitions, manifests)


@examples
def test_the_api_server_stores_an_example_unchanged(example: Path, definitions: ApiServer, namespace: str) -> None:
    for manifest, live in zip(written := _read(example, namespace), _apply(definitions, written), strict=True):
        if manifest["kind"] == "HyphaWorker":
            assert live["spec"] == manifest["spec"]
        _assert_within(manifest, live, manifest["kind"])


@examples
def test_the_operator_understands_an_example(example: Path) -> None:
    for manifest in _read(example, "any"):
        if manifest["kind"] == "HyphaWorker":
            HyphaWorkerSpec.model_validate(manifest["spec"])


def test_every_example_is_listed() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"({path.name})" not in text] == []


def test_quantities_stay_as_they_are_written(definitions: ApiServer, namespace: str) -> None:
    (worker,) = _read(ROOT / "examples" / "hyphaworker.yaml", namespace)
    worker["spec"]["resources"] = {"cpu": "1000m", "memory": "1024Mi", "storage": "0.5Ti"}
    (live,) = _apply(definitions, [worker])
    assert live["spec"]["resources"] == worker["spec"]["resources"]


def test_a_release_synced_twice_changes_nothing(definitions: ApiServer, namespace: str) -> None:
    """Like ArgoCD, apply each object server-side, then compare the manifest with the stored object."""
    values = {**EVERYTHING, "crds": {"install": False}}
    skipped = ("ServiceMonitor", "Pod")  # of a foreign kind; a hook
    manifests = [m for m in render(values=values, namespace=namespace) if m["kind"] not in skipped]
    first, second = (_apply(definitions, manifests, manager="argocd-controller") for _ in range(2))
    assert first == second
    for manifest, live in zip(manifests, first, strict=True):
        _assert_within(manifest, live, f"{manifest['kind']} {manifest['metadata']['name']}")


def _read(path: Path, namespace: str) -> list[Manifest]:
    manifests = list(yaml.safe_load_all(path.read_text()))
    for manifest in manifests:
        if manifest["kind"] == "Namespace":
            manifest["metadata"]["name"] = f"{namespace}-example"
        elif manifest["kind"] not in _CLUSTER_SCOPED:
            manifest["metadata"]["namespace"] = namespace
    return manifests


def _apply(api: ApiServer, manifests: list[Manifest], manager: str = "kubectl") -> list[Manifest]:
    """Apply the objects, and return them as the API server stores them."""
    arguments = ("apply", "--server-side", f"--field-manager={manager}", "-ojson", "-f-")
    answers = [yaml.safe_load(api.kubectl(*arguments, stdin=yaml.safe_dump(manifest))) for manifest in manifests]
    return [dict(answer) for answer in answers]


def _assert_within(written: Any, live: Any, path: str) -> None:
    """Assert that the stored object contains every written field unchanged."""
    if isinstance(written, dict):
        for key, value in written.items():
            assert key in live, f"{path}.{key} was dropped"
            _assert_within(value, live[key], f"{path}.{key}")
    elif isinstance(written, list):
        assert len(written) == len(live), path
        for index, (one, other) in enumerate(zip(written, live, strict=True)):
            _assert_within(one, other, f"{path}[{index}]")
    else:
        assert written == live, path
