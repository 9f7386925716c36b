"""A kubelet that serves nothing but logs. The API server passes them on, as those of a real one."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from e2e.cluster.pki import Authority
from support.api_server import ApiServer
from support.people import User

Place = tuple[str, str, str]
"""Namespace, pod and container."""


@dataclass
class Kubelet:
    """A node and the logs on it.

    Attributes:
        logs: the lines of each container, each with its time.
        ended: the containers that write no more lines.
        waiting: the containers that have not started.
        asked: the parameters of each request.
    """

    server: ApiServer
    node: str
    logs: dict[Place, list[str]] = field(default_factory=dict)
    ended: set[Place] = field(default_factory=set)
    waiting: set[Place] = field(default_factory=set)
    asked: list[dict[str, str]] = field(default_factory=list)
    broken: int = 0
    """How many requests to break off after their first line."""

    def pod(
        self, namespace: str, name: str, *containers: str, labels: dict[str, str] | None = None, **spec: Any
    ) -> None:
        """Make a pod on the node, each of whose containers has an empty log."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels or {}},
            "spec": {
                "nodeName": self.node,
                "automountServiceAccountToken": False,
                "containers": [{"name": container, "image": "none"} for container in containers],
                **spec,
            },
        }
        self.server.token(namespace, "default")
        User(self.server, namespace).apply(pod)
        for container in containers:
            self.logs[namespace, name, container] = []

    def end(self, namespace: str, pod: str) -> None:
        """End the containers of a pod."""
        self.ended |= {place for place in self.logs if place[:2] == (namespace, pod)}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}}
        User(self.server, namespace).status(manifest, "kubelet", phase="Succeeded")


def _lines(kubelet: Kubelet, place: Place, query: dict[str, str]) -> Iterator[str]:
    since = query.get("sinceTime", "")
    count = len(kubelet.logs[place])
    kept = [line for line in kubelet.logs[place][:count] if line >= since]
    if "tailLines" in query:
        kept = kept[-int(query["tailLines"]) :] if int(query["tailLines"]) else []
    for line in kept:
        yield line if query.get("timestamps") == "true" else line.partition(" ")[2]
    while query.get("follow") == "true" and (place not in kubelet.ended or len(kubelet.logs[place]) > count):
        new = kubelet.logs[place][count:]
        count += len(new)
        yield from new
        time.sleep(0.01)


@contextmanager
def kubelet(server: ApiServer) -> Iterator[Kubelet]:
    """Add a node with a kubelet to the API server."""
    served = Kubelet(server, f"node-{uuid4().hex[:8]}")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            _, kind, namespace, pod, container = url.path.split("/")
            assert kind == "containerLogs"
            served.asked.append(query)
            if (namespace, pod, container) in served.waiting:
                self._refuse(f'container "{container}" in pod "{pod}" is waiting to start: PodInitializing')
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in _lines(served, (namespace, pod, container), query):
                data = f"{line}\n".encode()
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                if served.broken:
                    served.broken -= 1
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")

        def _refuse(self, reason: str) -> None:
            self.send_response(400)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(reason)))
            self.end_headers()
            self.wfile.write(reason.encode())

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = Authority(server.directory / "pki")  # whose certificates the API server expects of kubelets
    context.load_cert_chain(*authority.issue(served.node, f"system:node:{served.node}", hosts=("127.0.0.1",)))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as https:
        https.socket = context.wrap_socket(https.socket, server_side=True)
        threading.Thread(target=https.serve_forever, args=(0.01,), daemon=True).start()
        server.post("/api/v1/nodes", {"metadata": {"name": served.node}})
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": https.server_port}},
        }
        with server.client() as client:
            headers = {"Content-Type": "application/merge-patch+json"}
            path = f"/api/v1/nodes/{served.node}"
            assert client.patch(f"{path}/status", json={"status": status}, headers=headers).is_success
            yield served
            client.delete(path)
        https.shutdown()
