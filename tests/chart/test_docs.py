"""docs/kubernetes.md explains every field, and its commands work."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.tools import ROOT, tool
from hypha_contracts.reasons import with_tables
from support.api_server import ApiServer

TEXT = (ROOT / "docs" / "kubernetes.md").read_text()


def fields(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Yield the dotted paths of a schema's leaves. Items of a list have the path of the list."""
    schema = schema.get("items", schema)
    if "properties" not in schema:
        yield path
    for name, part in schema.get("properties", {}).items():
        yield from fields(part, f"{path}.{name}".lstrip("."))


def test_every_field_of_a_hyphaworker_is_explained_and_no_other() -> None:
    definition = yaml.safe_load((ROOT / "crds" / "hyphaworkers.yaml").read_text())
    spec = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    section = TEXT.partition("## A HyphaWorker, field by field")[2].partition("\n## ")[0]
    explained = set()
    for row in re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE):
        explained |= set(re.findall(r"`([^`]+)`", row))
    assert explained == set(fields(spec))


def test_the_tables_of_reasons_are_up_to_date() -> None:
    assert with_tables(TEXT) == TEXT, "run make reasons"


def test_the_command_for_argocd_adds_the_health_checks(api_server: ApiServer) -> None:
    """The other keys of ArgoCD's ConfigMap stay."""
    (block,) = re.findall(r"```sh\n(checks=.*?)```", TEXT, re.DOTALL)
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
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=ROOT, env=environment, check=True, timeout=60)
    data = yaml.safe_load(api_server.kubectl("get", "-nargocd", "configmap/argocd-cm", "-oyaml"))["data"]
    assert data.pop("a") == "b"
    checks = {f"resource.customizations.health.hypha.space_{kind}": kind for kind in ("HyphaWorker", "HyphaJob")}
    lua = ROOT / "charts" / "argocd" / "resource_customizations" / "hypha.space"
    assert data == {key: (lua / kind / "health.lua").read_text() for key, kind in checks.items()}
