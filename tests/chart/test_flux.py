"""The example objects for Flux: they install this chart, and workers are drained before the operator goes."""

from typing import Any

import yaml

from chart.rendering import CHART, render
from e2e.cluster.tools import ROOT

FLUX = ROOT / "charts" / "flux"
OBJECTS: list[dict[str, Any]] = [
    item for name in ("operator", "sync") for item in yaml.safe_load_all((FLUX / f"{name}.yaml").read_text())
]


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [item for item in OBJECTS if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def test_the_release_installs_this_chart_with_valid_values() -> None:
    release = named("HelmRelease", "hypha-worker")["spec"]
    chart = release["chart"]["spec"]
    assert (ROOT / chart["chart"]).resolve() == CHART
    assert named("GitRepository", chart["sourceRef"]["name"])
    assert render(values=release["values"])


def test_workers_are_applied_after_the_operator_and_drained_before_they_count_as_deleted() -> None:
    workers = named("Kustomization", "hypha-workers")["spec"]
    assert [named("Kustomization", other["name"])["spec"]["wait"] for other in workers["dependsOn"]] == [True]
    assert (workers["prune"], workers["wait"], workers["deletionPolicy"]) == (True, True, "WaitForTermination")
