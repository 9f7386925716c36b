"""Simulated nodes. Pods bound to them are Running at once, and stay so until they are deleted."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import httpx

from e2e.cluster.processes import Processes, Program
from e2e.cluster.tools import tool

OWNER: Final = "kwok.example/owner"

NODE_BECOMES_READY: Final = """
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: node-becomes-ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
    - {key: '.status.conditions.[] | select(.type == "Ready") | .status', operator: NotIn, values: ["True"]}
  next:
    statusTemplate: |
      conditions:
      {{ range NodeConditions }}
      - type: {{ .type | Quote }}
        status: {{ .status | Quote }}
        reason: {{ .reason | Quote }}
        message: {{ .message | Quote }}
        lastHeartbeatTime: {{ Now | Quote }}
        lastTransitionTime: {{ Now | Quote }}
      {{ end }}
"""
MISSING_IMAGE: Final = "registry.invalid/nobody/nothing:0"
"""An image that no simulated node can pull."""
POD_LACKS_IMAGE: Final = """
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-lacks-image}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
    - {key: '.spec.containers.[].image', operator: In, values: [MISSING_IMAGE]}
    - {key: .status.containerStatuses, operator: DoesNotExist}
  next:
    statusTemplate: |
      phase: Pending
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        imageID: ""
        restartCount: 0
        ready: false
        started: false
        state: {waiting: {reason: ImagePullBackOff, message: "Back-off pulling image"}}
      {{ end }}
""".replace("MISSING_IMAGE", MISSING_IMAGE)
POD_RUNS: Final = """
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-runs}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: DoesNotExist}
    - {key: .status.phase, operator: In, values: [Pending]}
    - {key: '.spec.containers.[].image', operator: NotIn, values: [MISSING_IMAGE]}
  next:
    statusTemplate: |
      {{ $now := Now }}
      phase: Running
      startTime: {{ $now | Quote }}
      conditions:
      {{ range $type := list "Initialized" "ContainersReady" "Ready" }}
      - {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
      {{ end }}
      initContainerStatuses:
      {{ range .spec.initContainers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        restartCount: 0
        ready: true
        {{ if eq .restartPolicy "Always" }}
        started: true
        state: {running: {startedAt: {{ $now | Quote }}}}
        {{ else }}
        state: {terminated: {exitCode: 0, startedAt: {{ $now | Quote }}, finishedAt: {{ $now | Quote }}}}
        {{ end }}
      {{ end }}
      containerStatuses:
      {{ range .spec.containers }}
      - name: {{ .name | Quote }}
        image: {{ .image | Quote }}
        restartCount: 0
        ready: true
        started: true
        state: {running: {startedAt: {{ $now | Quote }}}}
      {{ end }}
""".replace("MISSING_IMAGE", MISSING_IMAGE)
POD_GOES: Final = """
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: pod-goes}
spec:
  resourceRef: {apiGroup: v1, kind: Pod}
  selector:
    matchExpressions:
    - {key: .metadata.deletionTimestamp, operator: Exists}
  next: {delete: true}
"""


class ApiServer(Protocol):
    """Access to an API server."""

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""

    def client(self) -> httpx.Client:
        """Return a client with the administrator's rights."""


@contextmanager
def kwok(api_server: ApiServer, directory: Path, *, nodes: int = 1, gpus: int = 4) -> Iterator[list[str]]:
    """Run nodes with GPUs for as long as the context lasts; yields their names.

    They have a label and a taint of their own, so that other pods stay away. `pod_placement(names)` is the part of a
    pod's spec that places it there. If a real node is lost, another healthy one must exist, because the controllers
    evict nothing while all nodes are unhealthy.

    Args:
        api_server: The API server of the nodes; its controllers must run.
        directory: Holds kwok's configuration and log.
        nodes: The number of nodes.
        gpus: The number of GPUs of each.
    """
    owner = uuid4().hex[:12]
    names = [f"kwok-{owner}-{number}" for number in range(nodes)]
    stages = directory / "stages.yaml"
    stages.write_text("---".join([NODE_BECOMES_READY, POD_LACKS_IMAGE, POD_RUNS, POD_GOES]))
    command = (
        tool("kwok"),
        f"--kubeconfig={api_server.kubeconfig}",
        f"--config={stages}",
        f"--manage-nodes-with-label-selector={OWNER}={owner}",
        "--node-lease-duration-seconds=40",
        "--node-port=0",
    )

    def all_take_pods() -> bool:
        with api_server.client() as client:
            found = client.get("/api/v1/nodes", params={"labelSelector": f"{OWNER}={owner}"}).json()["items"]
        return len(found) == nodes and all(_takes_pods(node) for node in found)

    with api_server.client() as client:
        for name in names:
            client.post("/api/v1/nodes", json=_node(name, owner, gpus)).raise_for_status()
    processes = Processes(directory, [Program("kwok", command, all_take_pods)], die_with_parent=True)
    try:
        processes.up()
        yield names
    finally:
        processes.down()
        with api_server.client() as client:
            for name in names:
                client.delete(f"/api/v1/nodes/{name}")


def pod_placement(nodes: list[str]) -> dict[str, Any]:
    """Return the part of a pod's spec that places it on nodes of `kwok`."""
    toleration = {"key": OWNER, "operator": "Exists"}
    return {"nodeSelector": {OWNER: owner_of(nodes)}, "tolerations": [toleration]}


def owner_of(nodes: list[str]) -> str:
    """Return the label that all nodes of one `kwok` have."""
    return nodes[0].split("-")[1]


def _node(name: str, owner: str, gpus: int) -> dict[str, Any]:
    total = {
        "cpu": "1000",
        "memory": "1Ti",
        "pods": "100000",
        "ephemeral-storage": "100Ti",
        "nvidia.com/gpu": str(gpus),
    }
    return {
        "metadata": {"name": name, "labels": {OWNER: owner, "kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": OWNER, "value": owner, "effect": "NoSchedule"}]},
        "status": {"capacity": total, "allocatable": total},
    }


def _takes_pods(node: dict[str, Any]) -> bool:
    """Whether a node is ready and no longer has the taint that keeps pods away from new nodes."""
    tainted = any(taint["key"] != OWNER for taint in node["spec"]["taints"])
    return not tainted and any(
        c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", [])
    )
