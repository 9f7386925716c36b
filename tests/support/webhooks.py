"""Admission webhooks: some that do not answer, and real ones that change or refuse objects."""

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from e2e.cluster.pki import Authority
from support.api_server import ApiServer
from support.waiting import until

ADMISSION = "/apis/admissionregistration.k8s.io/v1"
Answer = Callable[[dict[str, Any]], dict[str, Any]]
"""Returns the answer to a request (AdmissionRequest), without its uid."""


_POD: dict[str, Any] = {"containers": [{"name": "probe", "image": "probe"}]}
_LABELS = {"labels": {"app": "probe"}}
_NAME = {"metadata": {"name": "probe"}}
_PROBES: dict[str, dict[str, Any]] = {
    "deployments": {
        **_NAME,
        "spec": {"selector": {"matchLabels": {"app": "probe"}}, "template": {"metadata": _LABELS, "spec": _POD}},
    },
    "jobs": {**_NAME, "spec": {"template": {"spec": _POD | {"restartPolicy": "Never"}}}},
    "networkpolicies": {**_NAME, "spec": {"podSelector": {}}},
    "pods": {**_NAME, "spec": _POD},
}
"""Valid objects, because only these reach a webhook that validates."""


@contextmanager
def broken_webhook(server: ApiServer, namespace: str) -> Iterator[None]:
    """Prevent the creation of ConfigMaps and Jobs in a namespace with a webhook that does not answer."""
    rule = {"apiGroups": ["", "batch"], "apiVersions": ["v1"], "resources": ["configmaps", "jobs"]}
    client_config = {"url": "https://127.0.0.1:1/"}
    with _configured(server, "validating", "broken", namespace, client_config, [rule | {"operations": ["CREATE"]}]):
        with server.client() as client:
            probes = f"/api/v1/namespaces/{namespace}/configmaps?dryRun=All"
            probe = {"metadata": {"name": "probe"}}
            until(lambda: "failed calling webhook" in client.post(probes, json=probe).text)
        yield


@contextmanager
def webhook(
    server: ApiServer, namespace: str, kind: str, resource: str, answer: Answer, directory: Path
) -> Iterator[list[str]]:
    """Serve a webhook for the writes of one resource in a namespace; yield the operations that it was asked about.

    Args:
        server: the API server that asks.
        namespace: where it asks, which must have no objects of the resource's kind yet.
        kind: `mutating` or `validating`.
        resource: group and plural, such as `apps/deployments`.
        answer: what it answers.
        directory: for its certificate.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = review["request"]
            asked.append(request["operation"])
            review = {key: review[key] for key in ("apiVersion", "kind")}
            body = json.dumps({**review, "response": {"uid": request["uid"], **answer(request)}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    authority = Authority(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("webhook", "webhook", hosts=("127.0.0.1",)))
    group, _, plural = resource.rpartition("/")
    rule = {"apiGroups": [group], "apiVersions": ["*"], "resources": [plural], "operations": ["CREATE", "UPDATE"]}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as https:
        https.socket = context.wrap_socket(https.socket, server_side=True)
        threading.Thread(target=https.serve_forever, args=(0.01,), daemon=True).start()
        bundle = base64.b64encode(authority.ca.read_bytes()).decode()
        client_config = {"url": f"https://127.0.0.1:{https.server_port}/", "caBundle": bundle}
        path = f"{f'/apis/{group}/v1' if group else '/api/v1'}/namespaces/{namespace}/{plural}"
        with _configured(server, kind, kind, namespace, client_config, [rule]):
            with server.client() as client:
                until(lambda: asked or client.post(f"{path}?dryRun=All", json=_PROBES[plural]) is None)
            asked.clear()
            yield asked
        https.shutdown()


def patched(*operations: dict[str, Any]) -> dict[str, Any]:
    """Return the answer that applies a JSON patch."""
    patch = base64.b64encode(json.dumps(operations).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": patch}


def denied(message: str, code: int = 403) -> dict[str, Any]:
    """Return the answer that refuses."""
    return {"allowed": False, "status": {"message": message, "code": code}}


@contextmanager
def _configured(
    server: ApiServer, kind: str, name: str, namespace: str, client_config: dict[str, Any], rules: list[dict[str, Any]]
) -> Iterator[None]:
    hook = {
        "name": f"{name}.example.org",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "clientConfig": client_config,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "rules": rules,
    }
    path = f"{ADMISSION}/{kind}webhookconfigurations"
    with server.client() as client:
        client.post(path, json={"metadata": {"name": namespace}, "webhooks": [hook]}).raise_for_status()
        try:
            yield
        finally:
            client.delete(f"{path}/{namespace}").raise_for_status()
