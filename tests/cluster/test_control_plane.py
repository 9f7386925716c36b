"""With controllers, a scheduler and nodes in name only, objects have their usual lives."""

import json
from pathlib import Path
from typing import Any

from e2e.cluster.kwok import kwok, pod_placement
from support.api_server import ApiServer
from support.waiting import until


def job(name: str, placement: dict[str, Any], gpus: int) -> str:
    container = {"name": "main", "image": "none", "resources": {"limits": {"nvidia.com/gpu": str(gpus)}}}
    sidecar = {"name": "bridge", "image": "none", "restartPolicy": "Always"}
    pod = {"restartPolicy": "Never", "initContainers": [sidecar], "containers": [container], **placement}
    spec = {"backoffLimit": 0, "template": {"spec": pod}}
    return json.dumps({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec})


def phases(api: ApiServer, namespace: str) -> list[str]:
    return api.kubectl("-n", namespace, "get", "pods", "-o=jsonpath={.items[*].status.phase}").split()


def test_a_jobs_pod_runs_where_there_are_gpus_and_goes_with_its_job(control_plane: ApiServer, tmp_path: Path) -> None:
    namespace = control_plane.namespace()
    with kwok(control_plane, tmp_path, nodes=2, gpus=1) as nodes:
        for name in ("one", "two", "three"):
            control_plane.kubectl("-n", namespace, "apply", "-f-", stdin=job(name, pod_placement(nodes), 1))
        until(lambda: sorted(phases(control_plane, namespace)) == ["Pending", "Running", "Running"])
        where = control_plane.kubectl("-n", namespace, "get", "pods", "-o=jsonpath={.items[*].spec.nodeName}").split()
        assert sorted(where) == sorted(nodes)
        control_plane.kubectl("-n", namespace, "delete", "jobs", "--all", "--wait=false")
        until(lambda: not phases(control_plane, namespace))


def test_a_deleted_namespace_is_emptied(control_plane: ApiServer) -> None:
    namespace = control_plane.namespace()
    until(lambda: "default" in control_plane.kubectl("-n", namespace, "get", "serviceaccounts"))
    control_plane.kubectl("delete", "namespace", namespace, "--timeout=30s")
