"""The generated pages are up to date, every field has a meaning, and the commands of the pages work."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from documentation.commands import as_written
from e2e.cluster.tools import ROOT, tool
from hypha_contracts import reasons_page
from hypha_resources import reference
from support.api_server import ApiServer

ARGOCD = "tests/chart/test_docs.py::test_the_command_for_argocd_adds_the_health_checks_and_the_fields_to_ignore"
DOCS = ROOT / "docs"
REFERENCE = (DOCS / "hyphaworker.md").read_text()


def fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the dotted paths of all fields below a schema. Items of a list have the path of the list."""
    for name, part in schema.get("items", schema).get("properties", {}).items():
        yield (inner := f"{path}.{name}".lstrip("."))
        yield from fields(part, inner)


def test_every_field_of_a_hyphaworker_is_explained_and_no_other() -> None:
    definition = yaml.safe_load((ROOT / "crds" / "hyphaworkers.yaml").read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    rows = re.findall(r"^\| `([^`]+)` \|.*\| ([^|]*) \|$", REFERENCE, re.MULTILINE)
    sections = set(re.findall(r"^### (\w+)$", REFERENCE, re.MULTILINE))
    assert {path for path, _ in rows} | sections == set(fields(spec))
    assert [path for path, meaning in rows if not meaning.strip()] == []


def test_the_tables_of_fields_are_up_to_date() -> None:
    assert reference.with_tables(REFERENCE) == REFERENCE, "run make crds"


def test_the_tables_of_reasons_are_up_to_date() -> None:
    page = (DOCS / "conditions.md").read_text()
    assert reasons_page.with_tables(page) == page, "run make reasons"


def test_the_command_for_argocd_adds_the_health_checks_and_the_fields_to_ignore(api_server: ApiServer) -> None:
    """The other keys of ArgoCD's ConfigMap stay."""
    (block,) = as_written(ARGOCD)
    for manifest in (
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "argocd"}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "argocd-cm", "namespace": "argocd"},
            "data": {"a": "b"},
        },
    ):
        api_server.kubectl("apply", "-f-", stdin=yaml.safe_dump(manifest))
    path = f"{Path(tool('kubectl')).parent}:{os.environ['PATH']}"
    environment = os.environ | {"KUBECONFIG": str(api_server.kubeconfig), "PATH": path}
    subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], cwd=ROOT, env=environment, check=True, timeout=60)
    data = yaml.safe_load(api_server.kubectl("get", "-nargocd", "configmap/argocd-cm", "-oyaml"))["data"]
    assert data.pop("a") == "b"
    directory = ROOT / "charts" / "argocd" / "resource_customizations" / "hypha.space"
    assert data == {
        f"resource.customizations.{file.stem}.hypha.space_{file.parent.name}": file.read_text()
        for file in (*directory.glob("*/health.lua"), *directory.glob("*/ignoreResourceUpdates.yaml"))
    }
