"""ArgoCD's health checks, run by ArgoCD's version of Lua (5.1), and the example Application."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

from chart.rendering import CHART, render
from e2e.cluster.tools import ROOT
from hypha_resources.job import HyphaJobStatus
from hypha_resources.worker_status import HyphaWorkerStatus
from support.api_server import ApiServer

ARGOCD = ROOT / "charts" / "argocd"
CHECKS = sorted((ARGOCD / "resource_customizations").glob("*/*/health.lua"))
CASES = [
    pytest.param(
        check, case["inputPath"], case["healthStatus"], id=f"{check.parent.name}-{Path(case['inputPath']).stem}"
    )
    for check in CHECKS
    for case in yaml.safe_load((check.parent / "health_test.yaml").read_text())["tests"]
]


def health(check: Path, obj: Any) -> dict[str, str]:
    """Return the result of a health check. As in ArgoCD, `obj` is global, with the libraries base, table and string."""
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    lua.execute("io, os, package, require, dofile, loadfile, debug, python = nil")
    lua.globals().obj = lua.table_from(obj, recursive=True)
    return dict(lua.execute(check.read_text()))


@pytest.mark.parametrize(("check", "input_path", "expected"), CASES)
def test_health(check: Path, input_path: str, expected: dict[str, str]) -> None:
    assert health(check, yaml.safe_load((check.parent / input_path).read_text())) == expected


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.parent.name)
def test_every_state_of_health_has_a_case_with_data(check: Path) -> None:
    cases = [(path, expected) for of, path, expected in (case.values for case in CASES) if of == check]
    assert {f"testdata/{path.name}" for path in (check.parent / "testdata").iterdir()} == {path for path, _ in cases}
    states = {"Healthy", "Progressing", "Degraded"} | ({"Suspended"} if check.parent.name == "HyphaWorker" else set())
    assert {expected["status"] for _, expected in cases} == states


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.parent.name)
def test_the_api_server_accepts_the_test_data(check: Path, definitions: ApiServer, namespace: str) -> None:
    models = {"HyphaWorker": HyphaWorkerStatus, "HyphaJob": HyphaJobStatus}
    for path in (check.parent / "testdata").iterdir():
        manifest = yaml.safe_load(path.read_text())
        assert (manifest["apiVersion"], manifest["kind"]) == ("hypha.space/v1alpha1", check.parent.name)
        models[check.parent.name].model_validate(manifest.get("status", {}))
        kept = ("name", "labels")
        manifest["metadata"] = {key: value for key, value in manifest["metadata"].items() if key in kept}
        manifest["metadata"]["namespace"] = namespace
        text = yaml.safe_dump(manifest)
        definitions.kubectl("apply", "--server-side", "-f-", stdin=text)
        if "status" in manifest:
            definitions.kubectl("apply", "--server-side", "--subresource=status", "-f-", stdin=text)


def test_the_application_installs_this_chart_with_valid_values() -> None:
    application = yaml.safe_load((ARGOCD / "application.yaml").read_text())
    source = application["spec"]["source"]
    assert ROOT / source["path"] == CHART
    assert render(values=source["helm"]["valuesObject"])
    assert "ServerSideApply=true" in application["spec"]["syncPolicy"]["syncOptions"]


def test_workers_are_deleted_in_the_background_so_that_they_are_drained() -> None:
    application = yaml.safe_load((ARGOCD / "workers.yaml").read_text())
    assert application["metadata"]["finalizers"] == ["resources-finalizer.argocd.argoproj.io/background"]
    assert "PrunePropagationPolicy=background" in application["spec"]["syncPolicy"]["syncOptions"]
