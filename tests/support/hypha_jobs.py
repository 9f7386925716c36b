"""HyphaJobs on a real API server, in a namespace with the rights of a worker's node. The test acts as the operator."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import trio

from hypha_contracts.names import API_VERSION
from hypha_contracts.node_config import KubernetesConfig
from hypha_worker.job import JobEvent
from hypha_worker.runtimes.kubernetes.api import ApiAccess, open_api
from hypha_worker.runtimes.kubernetes.runtime import KubernetesRuntime, open_kubernetes_runtime
from support.api_server import ApiServer
from support.jobs import SCHEDULER
from support.resources import install_definitions, worker_manifest

PATIENCE_S = 90
LEASE_S = 3.0
WORKER = "w"
AUDIENCE = "hypha-connector"
PEER_ID = SCHEDULER  # any will do
GROUP = "hypha.space"

_RULES: list[dict[str, Any]] = [
    {"apiGroups": [GROUP], "resources": ["hyphajobs"], "verbs": ["get", "list", "watch", "create", "patch"]},
    {"apiGroups": [GROUP], "resources": ["hyphajobs/status"], "verbs": ["patch"]},
    {"apiGroups": [GROUP], "resources": ["hyphaworkers"], "verbs": ["get", "watch"], "resourceNames": [WORKER]},
    {"apiGroups": [GROUP], "resources": ["hyphaworkers/status"], "verbs": ["patch"], "resourceNames": [WORKER]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
]


@dataclass
class Cluster:
    """A namespace with a HyphaWorker, whose node has a service account with only the rights that it needs."""

    server: ApiServer
    namespace: str
    worker_uid: str
    access: ApiAccess

    @property
    def config(self) -> KubernetesConfig:
        return KubernetesConfig(namespace=self.namespace, worker=WORKER, worker_uid=self.worker_uid, audience=AUDIENCE)

    def call(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        with self.server.client() as client:
            response = client.request(method, path, json=body, headers={"Content-Type": content})
        assert response.is_success, response.text
        return response.json()

    def path(self, kind: str, name: str = "") -> str:
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/{kind}" + (f"/{name}" if name else "")

    def job(self, task_id: UUID) -> dict[str, Any]:
        return dict(self.call("GET", self.path("hyphajobs", f"hypha-{task_id}")))

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.call("GET", self.path("hyphajobs"))["items"])

    def secret(self, task_id: UUID) -> dict[str, Any]:
        return dict(self.call("GET", f"/api/v1/namespaces/{self.namespace}/secrets/hypha-{task_id}"))

    def worker(self) -> dict[str, Any]:
        return dict(self.call("GET", self.path("hyphaworkers", WORKER)))

    def change(self, **spec: Any) -> None:
        """Change fields of the HyphaWorker's specification; None removes them."""
        self.call("PATCH", self.path("hyphaworkers", WORKER), {"spec": spec}, "application/merge-patch+json")

    def permit(self, offering: dict[str, Any] | None) -> None:
        """Write what the worker may sell into its status, as the operator does; None removes it."""
        path = self.path("hyphaworkers", WORKER) + "/status?fieldManager=hypha-operator"
        self.call("PATCH", path, {"status": {"offering": offering}}, "application/merge-patch+json")

    def say(self, task_id: UUID, phase: str, **status: Any) -> None:
        """Write a job's status, as the operator does."""
        if phase in ("Succeeded", "Failed"):
            status.setdefault("completionTime", datetime.now(UTC).isoformat())
        path = self.path("hyphajobs", f"hypha-{task_id}") + "/status?fieldManager=hypha-operator"
        self.call("PATCH", path, {"status": {"phase": phase, **status}}, "application/merge-patch+json")

    def deadline(self, task_id: UUID) -> int:
        """Return the deadline of a job's lease, in seconds since the epoch."""
        return int(datetime.fromisoformat(self.job(task_id)["spec"]["lease"]["deadline"]).timestamp())

    def delete(self, task_id: UUID) -> None:
        self.call("DELETE", self.path("hyphajobs", f"hypha-{task_id}"))

    def reported(self, task_id: UUID) -> bool:
        conditions = self.job(task_id).get("status", {}).get("conditions", [])
        return any(c["type"] == "Reported" and c["status"] == "True" for c in conditions)

    def pod_token(self, name: str, account: str = f"{WORKER}-job", audience: str = AUDIENCE) -> tuple[str, str]:
        """Make a pod that never runs; return a token that is bound to it, and its uid."""
        container = {"name": "bridge", "image": "none"}
        pod = {
            "metadata": {"name": name},
            "spec": {"serviceAccountName": account, "containers": [container], "automountServiceAccountToken": False},
        }
        made = self.call("POST", f"/api/v1/namespaces/{self.namespace}/pods", pod)
        uid = made["metadata"]["uid"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid}
        request = {"spec": {"audiences": [audience], "boundObjectRef": bound, "expirationSeconds": 3600}}
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        return self.call("POST", path, request)["status"]["token"], uid


def make_cluster(server: ApiServer, directory: Path) -> Cluster:
    """Install the CustomResourceDefinitions and make the namespace."""
    install_definitions(server)
    namespace = server.namespace()
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    account = {"kind": "ServiceAccount", "name": "w-controller", "namespace": namespace}
    token = server.token(namespace, "w-controller")
    server.token(namespace, f"{WORKER}-job")
    post = server.post
    post(f"{rbac}/roles", {"metadata": {"name": "node"}, "rules": _RULES})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "node"}
    post(f"{rbac}/rolebindings", {"metadata": {"name": "node"}, "roleRef": role, "subjects": [account]})
    manifest = worker_manifest(namespace, WORKER)
    worker = post(f"/apis/{API_VERSION}/namespaces/{namespace}/hyphaworkers", manifest)
    token_file = directory / f"{namespace}.token"
    token_file.write_text(token)
    return Cluster(server, namespace, worker["metadata"]["uid"], ApiAccess(server.url, token_file, server.ca))


@dataclass
class Rig:
    """A runtime under test; `events` are those that it has emitted."""

    cluster: Cluster
    runtime: KubernetesRuntime
    events: list[JobEvent] = field(default_factory=list)

    async def take_events(self) -> None:
        async for event in self.runtime.events:
            self.events.append(event)

    async def heard(self, count: int) -> list[JobEvent]:
        """Wait for this many events; return all so far."""
        await until(lambda: len(self.events) >= count)
        return self.events


@asynccontextmanager
async def open_rig(cluster: Cluster, **changes: float) -> AsyncIterator[Rig]:
    """Open a node's runtime, which adopts all existing jobs."""
    options = {"lease_s": LEASE_S, "ended_s": 60.0} | changes
    with trio.fail_after(PATIENCE_S):
        async with (
            open_api(cluster.access) as api,
            open_kubernetes_runtime(api, cluster.config, peer_id=PEER_ID, **options) as runtime,
            trio.open_nursery() as nursery,
        ):
            rig = Rig(cluster, runtime)
            nursery.start_soon(rig.take_events)
            yield rig
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], Any]) -> Any:
    """Poll until a condition holds, and return its value; the caller's deadline bounds it."""
    while True:
        try:
            if value := condition():
                return value
        except httpx.HTTPError:
            pass  # the API server does not answer
        await trio.sleep(0.02)


def secret_text(secret: dict[str, Any]) -> Any:
    """Return the specification in a job's Secret."""
    return json.loads(base64.b64decode(secret["data"]["job.json"]))
