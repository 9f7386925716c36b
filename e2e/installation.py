"""The cluster, its images, and the release of the chart."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from e2e.cluster.cluster import Cluster
from e2e.cluster.tools import tool
from e2e.kube import Kube, eventually
from e2e.settings import ROOT, Settings
from images.build import settings_of
from images.contexts import IMAGES, OUTPUT
from images.release import chart_key

NAMESPACE: Final = "hypha-system"
RELEASE: Final = "hypha"
_INSTALL_S: Final = 180


def cluster(settings: Settings) -> Kube:
    """Return the cluster; start it first if it is that of `make cluster`."""
    if not settings.own_cluster:
        return Kube(settings.kubeconfig, settings.context)
    own = Cluster()
    own.up()
    return Kube(own.kubeconfig, None, tool("kubectl"))


def load_images(directory: Path = OUTPUT) -> list[str]:
    """Load the images of `make images` that changed into the cluster of `make cluster`; return their Helm values."""
    own, built = Cluster(), settings_of(dict(os.environ))
    loaded = own.directory / "loaded"
    loaded.mkdir(exist_ok=True)
    arguments, digests = [], []
    for image in IMAGES:
        digest = (directory / f"{image.name}.digest").read_text()
        digests.append(digest)
        mark = loaded / image.name
        if not mark.exists() or mark.read_text() != digest:
            own.load(directory / f"{image.name}.tar")
            mark.write_text(digest)
        if not image.in_chart:
            continue
        key = f"images.{chart_key(image.name)}"
        arguments += ["--set", f"{key}.repository={image.name}", "--set-string", f"{key}.tag={built.tag}"]
    # The tags stay the same, so this annotation replaces the operator's pod when its image has changed.
    of_all = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    return [
        *arguments,
        "--set",
        f"images.registry={built.registry}",
        "--set-string",
        f"operator.podAnnotations.images={of_all}",
    ]


def install(kube: Kube, settings: Settings) -> None:
    """Install or upgrade the chart, and wait until the operator is ready."""
    images = load_images() if settings.own_cluster else []
    values = ["--values", str(settings.values)] if settings.values else []
    chart = ("upgrade", "--install", RELEASE, str(ROOT / "charts" / "hypha-worker"), "--create-namespace", "--wait")
    _helm(kube, settings, *chart, "--set", "operator.resources.requests.cpu=50m", *images, *values)
    eventually("the operator is ready", lambda: operator_ready(kube))


def uninstall(kube: Kube, settings: Settings) -> None:
    """Uninstall the release and wait until its objects are gone. HyphaWorkers stay."""
    _helm(kube, settings, "uninstall", RELEASE, "--wait")


def check_release(kube: Kube, settings: Settings) -> None:
    """Run the chart's own test as its users do; CalledProcessError if it fails."""
    _helm(kube, settings, "test", RELEASE)


def _helm(kube: Kube, settings: Settings, *arguments: str) -> None:
    helm = tool("helm") if settings.own_cluster else "helm"
    flags = [flag.replace("--context", "--kube-context") for flag in kube.flags]
    everywhere = ("--namespace", NAMESPACE, "--timeout", f"{_INSTALL_S}s")
    subprocess.run([helm, *arguments, *everywhere, *flags], check=True)


def operator_ready(kube: Kube) -> bool:
    """Return whether all pods of the operator's Deployment are ready and current."""
    deployments = kube.items("deployments", NAMESPACE, app_kubernetes_io__instance=RELEASE)
    return bool(deployments) and all(
        item["status"].get("readyReplicas") == item["spec"]["replicas"]
        and item["status"].get("observedGeneration") == item["metadata"]["generation"]
        for item in deployments
    )


def kill_operator(kube: Kube) -> None:
    """Delete the operator's pods without a grace period."""
    for pod in kube.items("pods", NAMESPACE, app_kubernetes_io__instance=RELEASE):
        kube.delete("pods", NAMESPACE, pod["metadata"]["name"], 0)


def image(kube: Kube, variable: str) -> str:
    """Return an image from the operator's environment, by the name of the variable."""
    (deployment,) = kube.items("deployments", NAMESPACE, app_kubernetes_io__instance=RELEASE)
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    found: str = next(entry["value"] for entry in environment if entry["name"] == variable)
    return found


def host(settings: Settings) -> str:
    """Return the address of this machine that pods reach."""
    if settings.host:
        return settings.host
    if not settings.own_cluster:
        raise AssertionError("E2E_HOST is not set; set it to the address of this machine that the cluster's pods reach")
    return Cluster().network.host


@contextmanager
def policies_ignored() -> Iterator[None]:
    """Stop the engine of NetworkPolicies of `make cluster` for as long as the context lasts."""
    own = Cluster()
    own.stop("kube-router")
    own.node.forget_policies()
    try:
        yield
    finally:
        own.start("kube-router")


@contextmanager
def api_server_stopped() -> Iterator[None]:
    """Stop the API server of `make cluster` for as long as the context lasts."""
    own = Cluster()
    own.stop("kube-apiserver")
    try:
        yield
    finally:
        own.start("kube-apiserver")
