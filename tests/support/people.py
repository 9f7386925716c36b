"""The other clients that write objects: users, nodes, kubelets."""

import copy
from typing import Any

from hypha_contracts.kinds import DEPLOYMENT, Manifest, kind_of
from support.api_server import ApiServer
from support.operating import Operating
from support.resources import GATEWAY, PEER


class User:
    """Writes objects of one namespace as a chosen field manager."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self._server, self._namespace = server, namespace

    def _path(self, manifest: Manifest, subresource: str = "") -> str:
        return kind_of(manifest).path(self._namespace, manifest["metadata"]["name"], subresource)

    def apply(self, manifest: Manifest, manager: str = "user", subresource: str = "") -> Manifest:
        headers = {"Content-Type": "application/apply-patch+yaml"}
        query = {"fieldManager": manager, "force": "true"}
        with self._server.client() as client:
            answer = client.patch(self._path(manifest, subresource), params=query, json=manifest, headers=headers)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def status(self, manifest: Manifest, manager: str, **status: Any) -> Manifest:
        identity = {"name": manifest["metadata"]["name"], "namespace": self._namespace}
        applied = {
            "apiVersion": manifest["apiVersion"],
            "kind": manifest["kind"],
            "metadata": identity,
            "status": status,
        }
        return self.apply(applied, manager, "status")

    def merge(self, manifest: Manifest, change: Manifest) -> Manifest:
        headers = {"Content-Type": "application/merge-patch+json"}
        with self._server.client() as client:
            answer = client.patch(self._path(manifest), json=change, headers=headers)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def get(self, manifest: Manifest) -> Manifest | None:
        with self._server.client() as client:
            answer = client.get(self._path(manifest))
        return dict(answer.json()) if answer.is_success else None

    def delete(self, manifest: Manifest, propagation: str = "Background") -> None:
        query = {"propagationPolicy": propagation}
        with self._server.client() as client:
            assert client.delete(self._path(manifest), params=query).is_success

    def events(self, kind: str = "HyphaWorker") -> dict[str, Manifest]:
        with self._server.client() as client:
            items = client.get(f"/api/v1/namespaces/{self._namespace}/events").json()["items"]
        return {item["reason"]: item for item in items if item["involvedObject"]["kind"] == kind}

    def run_pod(self, operator: Operating, name: str = "gpu-pod") -> None:
        """Make a pod of the controller, and write its status as if it ran."""
        template = operator.store.get(DEPLOYMENT, self._namespace, "gpu-controller")
        assert template is not None
        spec = copy.deepcopy(template["spec"]["template"])
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **spec["metadata"]}, "spec": spec["spec"]}
        self.apply(pod)
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        self.status(
            pod, "kubelet", conditions=[ready], phase="Running", hostIP="192.0.2.7", hostIPs=[{"ip": "192.0.2.7"}]
        )


def report(user: User, worker: Manifest, **node: Any) -> None:
    """Report the status of a healthy node."""
    healthy = {
        "peerId": PEER,
        "gateways": [GATEWAY],
        "connectedGateways": 1,
        "circuits": ["/p2p-circuit"],
        "reach": "public",
        "healthy": True,
        "podName": "gpu-pod",
    }
    user.status(worker, "hypha-worker", node=healthy | node)
