"""The chart as Helm renders it."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.tools import ROOT, tool

CHART = ROOT / "charts" / "hypha-worker"
HELMS = ("helm3", "helm")
RELEASE = "hypha-worker"
NAMESPACE = "hypha-system"

Manifest = dict[str, Any]

WORKER_SPEC = yaml.safe_load((ROOT / "examples" / "hyphaworker.yaml").read_text())["spec"]
EVERYTHING: Manifest = {
    "commonLabels": {"team": "training"},
    "images": {
        "registry": "registry.example.org/hypha/",
        "pullSecrets": [{"name": "registry"}],
        "worker": {"tag": "1.2.3"},
        "trainer": {"digest": "sha256:" + "a" * 64},
    },
    "operator": {
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example.org:3128"}],
        "podLabels": {"tier": "control"},
        "podAnnotations": {"example.org/note": "yes"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"key": "control", "operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
    },
    "serviceAccount": {"annotations": {"example.org/role": "operator"}},
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}]},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "kubeStateMetrics": {"enabled": True, "serviceAccount": {"name": "ksm"}},
        "dashboards": {"enabled": True},
    },
    "worker": {"create": True, "name": "w", "spec": WORKER_SPEC},
}
VARIANTS: Mapping[str, Manifest] = {
    "defaults": {},
    "one namespace": {"watchNamespace": "training"},
    "everything": EVERYTHING,
    "nothing": {
        "crds": {"install": False},
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "its"},
    },
}


def helm(which: str, *arguments: str, values: Manifest | None = None, kubeconfig: Path | None = None) -> str:
    """Return Helm's output. Raises CalledProcessError, with Helm's message in stderr."""
    command = [tool(which), *arguments]
    if values is not None:
        command += ["--values", "-"]
    if kubeconfig:
        command += ["--kubeconfig", str(kubeconfig)]
    document = json.dumps(values or {})
    return subprocess.run(command, input=document, capture_output=True, text=True, timeout=60, check=True).stdout


def render(
    which: str = "helm", values: Manifest | None = None, *, namespace: str = NAMESPACE, serves: tuple[str, ...] = ()
) -> list[Manifest]:
    """Return the objects of a release, as `helm template` renders them for a cluster that also serves some APIs."""
    apis = [f"--api-versions={api}" for api in serves]
    text = helm(which, "template", RELEASE, str(CHART), "--namespace", namespace, *apis, values=values or {})
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """Return the objects of one kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    """Return the only object of a kind, or of a kind and a name."""
    (found,) = [m for m in of_kind(manifests, kind) if name in (None, m["metadata"]["name"])]
    return found
