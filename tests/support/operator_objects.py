"""A HyphaWorker and its HyphaJobs as the API server gives them to the operator."""

from typing import Any
from uuid import UUID, uuid4

from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec
from support import resources

WORKER = "gpu-worker"
WORKER_UID = "11111111-1111-1111-1111-111111111111"
PEER = resources.PEER
TRAIN = {"class": "train", "name": "diloco-transformer"}
AGGREGATE = {"class": "aggregate", "name": "parameter-server"}
INFERENCE = {"class": "inference", "name": "transformers"}
ROOM = {"cpu": "8", "memory": "64Gi", "storage": "1Ti"}
GPU = {"resourceName": "nvidia.com/gpu", "count": 4, "memory": "48Gi"}
LEASE = {"cpu": 4.0, "memory": 16.0, "storage": 100.0, "gpu": 0.0}


def worker_manifest(namespace: str = "gpu", *, executor: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A HyphaWorker with four GPUs, a trainer and a parameter server; `executor` adds to the trainer."""
    executors = [TRAIN | (executor or {}), AGGREGATE]
    manifest = resources.worker_manifest(
        namespace, WORKER, **{"executors": executors, "resources": ROOM | {"gpu": GPU}, **spec}
    )
    manifest["metadata"] |= {"uid": WORKER_UID, "generation": 1}
    return manifest


def worker_spec(**changes: Any) -> HyphaWorkerSpec:
    """The same worker's specification."""
    return HyphaWorkerSpec.model_validate(worker_manifest(**changes)["spec"])


def hypha_job(
    namespace: str = "gpu",
    *,
    task_id: UUID | None = None,
    status: dict[str, Any] | None = None,
    worker_uid: str = WORKER_UID,
    **spec: Any,
) -> dict[str, Any]:
    """A HyphaJob of this worker; keys of `spec` replace those that every job has."""
    worker = worker_manifest(namespace)
    worker["metadata"]["uid"] = worker_uid
    manifest = resources.job_manifest(namespace, worker, task_id, **{"resources": LEASE, **spec})
    manifest["metadata"] |= {"uid": str(uuid4()), "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    return manifest if status is None else manifest | {"status": status}


def job_spec(**changes: Any) -> HyphaJobSpec:
    """Its specification."""
    return HyphaJobSpec.model_validate(hypha_job(**changes)["spec"])
