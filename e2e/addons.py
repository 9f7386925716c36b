"""Programs that people run in a cluster beside this project, in the cluster of `make cluster`."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import yaml

from e2e.cluster.cluster import Cluster
from e2e.cluster.image import write_image
from e2e.cluster.tools import manifests, tool
from e2e.kube import Kube, Object, eventually, path_of
from e2e.processes import Process
from e2e.settings import OUTPUT

_KUEUE: Final = "kueue-system"
_KUEUE_IMAGE: Final = "hypha.test/kueue"
_HELM_S: Final = 120
_DEVICE_PLUGINS: Final = "/var/lib/kubelet/device-plugins"
"""Where every kubelet meets its plugins, whatever its own directory is."""
CLUSTER_SECRETS: Final = "kube-system"
"""The namespace of the Secrets of ClusterIssuers."""

Review = Callable[[Object], list[Object] | str]
"""Decides about a new object: a JSON patch, or why the object is refused."""


@contextmanager
def kueue(kube: Kube) -> Iterator[None]:
    """Run Kueue, installed by its chart, for as long as the context lasts."""
    own = Cluster()
    archive = own.directory / "kueue.tar"
    write_image(archive, f"{_KUEUE_IMAGE}:1", {"manager": Path(tool("kueue"))}, {}, {"User": "65532:65532"})
    own.load(archive)
    archive.unlink()
    # Its aggregated API would block the deletion of every namespace while it does not answer.
    gates = [{"name": "VisibilityOnDemand", "enabled": False}]
    manager = {
        "image": {"repository": _KUEUE_IMAGE, "tag": "1", "pullPolicy": "Never"},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
    }
    values = OUTPUT / "kueue.json"
    values.write_text(json.dumps({"controllerManager": {"featureGates": gates, "manager": manager}}))
    chart = str(manifests("kueue"))
    try:
        _helm(kube, "upgrade", "--install", "kueue", chart, "--create-namespace", "--values", str(values), "--wait")
        for version in ("v1beta1", "v1beta2"):
            service = f"/apis/apiregistration.k8s.io/v1/apiservices/{version}.visibility.kueue.x-k8s.io"
            kube.request("DELETE", service)
        yield
    finally:
        for kind in ("clusterqueues", "resourceflavors"):  # their finalizers need Kueue
            for item in kube.items(kind):
                kube.delete(kind, None, item["metadata"]["name"])
            eventually(f"no {kind} are left", partial(_is_empty, kube, kind))
        _helm(kube, "uninstall", "kueue", "--wait")
        kube.delete("namespaces", None, _KUEUE)


def _helm(kube: Kube, *arguments: str) -> None:
    flags = [flag.replace("--context", "--kube-context") for flag in kube.flags]
    everywhere = ("--namespace", _KUEUE, "--timeout", f"{_HELM_S}s")
    subprocess.run([tool("helm"), *arguments, *everywhere, *flags], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def cert_manager(kube: Kube) -> Iterator[None]:
    """Run cert-manager's controllers for as long as the context lasts, without its webhook. Its kinds go at the end."""
    definitions = [yaml.safe_load(path.read_text()) for path in sorted(manifests("cert-manager").glob("*.yaml"))]
    kube.apply(*definitions)
    for definition in definitions:
        eventually(f"{definition['metadata']['name']} is served", partial(_is_served, kube, definition))
    command = [
        tool("cert-manager"),
        "--kubeconfig",
        str(Cluster().kubeconfig),
        "--cluster-resource-namespace",
        CLUSTER_SECRETS,
    ]
    process = Process("cert-manager", command, OUTPUT, os.environ)
    try:
        yield
    finally:
        process.stop()
        for definition in definitions:
            kube.delete("customresourcedefinitions", None, definition["metadata"]["name"])


def _is_empty(kube: Kube, kind: str) -> bool:
    return not kube.items(kind)


def _is_served(kube: Kube, definition: Object) -> bool:
    found = kube.get("customresourcedefinitions", None, definition["metadata"]["name"]) or {}
    conditions = (found.get("status") or {}).get("conditions", [])
    return {"Established": "True"}.items() <= {entry["type"]: entry["status"] for entry in conditions}.items()


def dial_as_the_reference(host: str, port: int, certificate: Path, key: Path, trust: Path) -> bytes:
    """Connect to a node with the certificate rules of the reference, and return the node's certificate (DER).

    The reference dials every peer with the server name 0.0.0.0, which the peer's certificate has to hold.

    Raises:
        ssl.SSLCertVerificationError: The rules refuse the certificate.
    """
    context = ssl.create_default_context(cafile=str(trust))
    context.load_cert_chain(certificate, key)
    with socket.create_connection((host, port), 10) as raw:
        for protocol in ("/multistream/1.0.0", "/tls/1.0.0"):
            line = f"{protocol}\n".encode()
            raw.sendall(bytes([len(line)]) + line)
            assert raw.recv(1 + len(line), socket.MSG_WAITALL)[1:] == line
        with context.wrap_socket(raw, server_hostname="0.0.0.0") as secure:  # noqa: S104 - nothing binds to it
            found = secure.getpeercert(binary_form=True)
    assert found is not None
    return found


@contextmanager
def webhook(kube: Kube, kind: str, namespace: str, review: Review, name: str = "e2e") -> Iterator[list[Object]]:
    """Serve an admission webhook for new and changed objects of a kind (its plural) in a namespace.

    Yields the objects that it has reviewed.
    """
    own = Cluster()
    host, reviewed = own.network.host, list[Object]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*own.plane.pki.issue("e2e-webhook", "e2e-webhook", hosts=(host,)))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            reviewed.append(request["object"])
            decision = review(request["object"])
            response: Object = {"uid": request["uid"], "allowed": not isinstance(decision, str)}
            if isinstance(decision, str):
                response["status"] = {"message": decision}
            else:
                response |= {"patchType": "JSONPatch", "patch": b64encode(json.dumps(decision).encode()).decode()}
            answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Write no log."""

    server = ThreadingHTTPServer((host, 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _, *group, version, plural = path_of(kind).removeprefix("/api").removeprefix("s").split("/")
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [
            {
                "name": f"{name}.hypha.test",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {
                    "url": f"https://{host}:{server.server_port}",
                    "caBundle": b64encode(own.plane.pki.ca.read_bytes()).decode(),
                },
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "rules": [
                    {
                        "apiGroups": group or [""],
                        "apiVersions": [version],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": [plural],
                    }
                ],
            }
        ],
    }
    try:
        kube.apply(configuration)
        yield reviewed
    finally:
        kube.delete("mutatingwebhookconfigurations", None, name)
        server.shutdown()
        server.server_close()


@contextmanager
def devices(kube: Kube, resource: str, count: int) -> Iterator[Process]:
    """Run a device plugin on the node for as long as the context lasts; yields its process."""
    own = Cluster()
    own.stop("kubelet")  # the kubelet of another cluster on this machine may have taken its place
    own.start("kubelet")
    command = [sys.executable, "-m", "e2e.device_plugin", _DEVICE_PLUGINS, resource, str(count)]
    process = Process("device-plugin", command, OUTPUT, os.environ)
    try:
        process.event("registered")
        eventually(f"the node has {count} {resource}", lambda: devices_of(kube, resource) == count)
        yield process
    finally:
        process.stop()


def devices_of(kube: Kube, resource: str) -> int:
    """Return how many devices of a resource pods may use."""
    return sum(int(node["status"]["allocatable"].get(resource, 0)) for node in kube.items("nodes"))
