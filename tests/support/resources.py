"""HyphaWorkers and HyphaJobs for tests, and their definitions on a test's API server."""

import time
from copy import deepcopy
from typing import Any
from uuid import UUID, uuid4

from hypha_resources.crd import RESOURCES, definition
from support.api_server import ApiServer

GATEWAY = "/dns4/gateway.example.org/tcp/4001"
PEER = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X"


def install_definitions(server: ApiServer) -> None:
    """Apply the CustomResourceDefinitions and wait until the API server serves their objects."""
    with server.client() as client:
        for resource in RESOURCES:
            manifest = definition(resource)
            name = manifest["metadata"]["name"]
            path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
            query = {"fieldManager": "tests", "force": "true"}
            headers = {"Content-Type": "application/apply-patch+yaml"}
            answer = client.patch(path, params=query, json=manifest, headers=headers)
            assert answer.is_success, answer.text
        deadline = time.monotonic() + 30
        for resource in RESOURCES:
            while not client.get(f"/apis/hypha.space/v1alpha1/{resource.plural}").is_success:
                assert time.monotonic() < deadline, f"{resource.plural} are not served"
                time.sleep(0.02)


def worker_manifest(namespace: str, name: str = "gpu", **spec: Any) -> dict[str, Any]:
    """Return a HyphaWorker with two GPUs; `spec` replaces fields of its specification, None removes them."""
    manifest = {
        "apiVersion": "hypha.space/v1alpha1",
        "kind": "HyphaWorker",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "identity": {"secretName": f"{name}-identity"},
            "network": {"gateways": [GATEWAY]},
            "resources": {
                "cpu": "32",
                "memory": "128Gi",
                "storage": "1Ti",
                "gpu": {"resourceName": "nvidia.com/gpu", "count": 2, "memory": "48Gi"},
            },
            "executors": [
                {"class": "train", "name": "diloco-transformer", "accelerate": {"mixed_precision": "bf16"}},
                {"class": "aggregate", "name": "parameter-server"},
            ],
            **spec,
        },
    }
    manifest["spec"] = {key: value for key, value in manifest["spec"].items() if value is not None}
    return deepcopy(manifest)  # tests change what they get, and have constants in common


def job_manifest(namespace: str, worker: dict[str, Any], task_id: UUID | None = None, **spec: Any) -> dict[str, Any]:
    """Return a HyphaJob of a HyphaWorker (with its uid); `spec` replaces fields of its specification."""
    task_id = task_id or uuid4()
    metadata = worker["metadata"]
    manifest = {
        "apiVersion": "hypha.space/v1alpha1",
        "kind": "HyphaJob",
        "metadata": {
            "name": f"hypha-{task_id}",
            "namespace": namespace,
            "labels": {"hypha.space/worker": metadata["name"]},
        },
        "spec": {
            "workerRef": {"name": metadata["name"], "uid": metadata.get("uid", str(uuid4()))},
            "workerPeerId": PEER,
            "taskId": str(task_id),
            "jobId": str(uuid4()),
            "scheduler": PEER,
            "lease": {"id": str(uuid4()), "deadline": "2036-01-01T00:00:00Z"},
            "executor": {"class": "train", "name": "diloco-transformer"},
            "config": {"executor": {"class": "train", "name": "diloco-transformer"}},
            "resources": {"cpu": 4, "memory": 16, "storage": 50, "gpu": 48},
            "ttlSecondsAfterFinished": 3600,
            **spec,
        },
    }
    return deepcopy(manifest)
