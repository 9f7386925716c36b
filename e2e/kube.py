"""Access to the cluster: objects by REST path, and kubectl where users would use kubectl."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import urllib3
from kubernetes import config

T = TypeVar("T")
Object = dict[str, Any]

_GROUPS: Final = {
    "admissionregistration.k8s.io/v1": ("mutatingwebhookconfigurations",),
    "apiextensions.k8s.io/v1": ("customresourcedefinitions",),
    "apps/v1": ("deployments", "replicasets"),
    "batch/v1": ("jobs",),
    "cert-manager.io/v1": ("certificates", "certificaterequests", "clusterissuers", "issuers"),
    "coordination.k8s.io/v1": ("leases",),
    "discovery.k8s.io/v1": ("endpointslices",),
    "hypha.space/v1alpha1": ("hyphaworkers", "hyphajobs"),
    "kueue.x-k8s.io/v1beta2": (
        "clusterqueues",
        "localqueues",
        "resourceflavors",
        "workloadpriorityclasses",
        "workloads",
    ),
    "networking.k8s.io/v1": ("networkpolicies",),
    "node.k8s.io/v1": ("runtimeclasses",),
    "policy/v1": ("poddisruptionbudgets",),
    "rbac.authorization.k8s.io/v1": ("roles", "rolebindings", "clusterrolebindings"),
    "resource.k8s.io/v1": ("deviceclasses", "resourceclaims", "resourceslices"),
    "scheduling.k8s.io/v1": ("priorityclasses",),
}
_VERSIONS: Final = {kind: version for version, kinds in _GROUPS.items() for kind in kinds}
_POLL_S: Final = 0.5


class KubeError(Exception):
    """The API server refused a request with this status, or did not answer (0)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


def path_of(kind: str, namespace: str | None = None, name: str | None = None) -> str:
    """Return the REST path of an object, or of all objects of a kind (its plural in lower case)."""
    version = _VERSIONS.get(kind)
    parts = ["/apis", version] if version else ["/api/v1"]
    parts += ["namespaces", namespace] if namespace else []
    return "/".join([*parts, kind, *([name] if name else [])])


class Kube:
    """One cluster.

    Args:
        kubeconfig: its kubeconfig; None: the default one.
        context: the kubeconfig's context; None: the current one.
    """

    def __init__(self, kubeconfig: Path | None, context: str | None, kubectl: str = "kubectl") -> None:
        self.flags = [
            *(["--kubeconfig", str(kubeconfig)] if kubeconfig else []),
            *(["--context", context] if context else []),
        ]
        self.program = kubectl
        self._client = config.new_client_from_config(  # type: ignore[no-untyped-call]
            str(kubeconfig) if kubeconfig else None, context
        )
        self._client.configuration.retries = False

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: str
    ) -> Any:
        """Send a request to the API server; return its JSON or text. KubeError if it refuses or does not answer."""
        headers: dict[str, str] = {"Accept": "application/json, */*", "Content-Type": content_type}
        self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._client.rest_client.pool_manager.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=urllib3.Timeout(30),
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise KubeError(0, repr(error)) from error
        if response.status >= 400:
            raise KubeError(response.status, response.data.decode(errors="replace"))
        text = response.data.decode(errors="replace")
        return json.loads(text) if "json" in response.headers.get("Content-Type", "") else text

    def get(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """Return an object, or None if none has this name."""
        try:
            found: Object = self.request("GET", path_of(kind, namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise
        return found

    def items(self, kind: str, namespace: str | None = None, **labels: str) -> list[Object]:
        """Return all objects of a kind with these labels; in a keyword `__` is `/` and `_` is `.`."""
        selector = ",".join(f"{key.replace('__', '/').replace('_', '.')}={value}" for key, value in labels.items())
        return self.list_of(kind, namespace, selector)

    def list_of(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Object]:
        """Return all objects of a kind that match a label selector."""
        found: list[Object] = self.request("GET", path_of(kind, namespace), labelSelector=selector)["items"]
        return found

    def apply(self, *objects: Object, manager: str = "e2e") -> None:
        """Apply objects on the server side, as a user does."""
        for item in objects:
            kind = _plural(item["kind"])
            metadata = item["metadata"]
            path = path_of(kind, metadata.get("namespace"), metadata["name"])
            patch = "application/apply-patch+yaml"
            self.request("PATCH", path, item, patch, fieldManager=manager, force="true")

    def patch(self, kind: str, namespace: str | None, name: str, change: Object) -> None:
        """Merge a change into an object."""
        self.request("PATCH", path_of(kind, namespace, name), change, "application/merge-patch+json")

    def delete(self, kind: str, namespace: str | None, name: str, grace_s: int | None = None) -> None:
        """Delete an object; do nothing if it is gone."""
        query = {} if grace_s is None else {"gracePeriodSeconds": str(grace_s)}
        try:
            self.request("DELETE", path_of(kind, namespace, name), propagationPolicy="Background", **query)
        except KubeError as error:
            if error.status != 404:
                raise

    def logs(self, namespace: str, pod: str, container: str) -> str:
        """Return a container's log."""
        return str(self.request("GET", path_of("pods", namespace, pod) + "/log", container=container))

    def evict(self, namespace: str, pod: str) -> None:
        """Evict a pod by the eviction API."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace},
        }
        self.request("POST", path_of("pods", namespace, pod) + "/eviction", eviction)

    def kubectl(self, *args: str, check: bool = True) -> str:
        """Run kubectl; return its output. KubeError if it fails."""
        done = subprocess.run(
            [self.program, *self.flags, *args], capture_output=True, text=True, timeout=300, check=False
        )
        if check and done.returncode:
            raise KubeError(done.returncode, f"kubectl {' '.join(args)}: {done.stderr}")
        return done.stdout + done.stderr


def _plural(kind: str) -> str:
    lower = kind.lower()
    if lower.endswith("y"):
        return f"{lower[:-1]}ies"
    return f"{lower}es" if lower.endswith("s") else f"{lower}s"


def condition(item: Object | None, type_: str) -> Object:
    """Return a condition of an object, empty if it has none of this type."""
    conditions = ((item or {}).get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == type_), {})


def eventually(what: str, probe: Callable[[], T], timeout_s: float = 60, every_s: float = _POLL_S) -> T:
    """Poll until the answer is truthy, and return it; AssertionError with the last answer after the timeout.

    It keeps polling while the API server does not answer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            last: Any = probe()
        except KubeError as error:
            if error.status:
                raise
            last = error
        else:
            if last:
                return last  # type: ignore[no-any-return]
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what} (last answer: {last!r})")
        time.sleep(every_s)


def consistently(what: str, probe: Callable[[], object], for_s: float, every_s: float = _POLL_S) -> None:
    """Assert that the answer stays truthy for this time."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        answer = probe()
        if not answer:
            raise AssertionError(f"no longer: {what} (last answer: {answer!r})")
        time.sleep(every_s)
