"""HyphaWorkers and HyphaJobs as the API server gives them to the operator."""

import copy
from typing import Any
from uuid import UUID, uuid4

from hypha_operator.settings import Settings
from hypha_resources.common import API_VERSION, WORKER_LABEL
from hypha_resources.job import HyphaJobSpec, job_name
from hypha_resources.worker import HyphaWorkerSpec

WORKER = "gpu-worker"
WORKER_UID = "11111111-1111-1111-1111-111111111111"
PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
SETTINGS = Settings(
    worker_image="worker:test",
    bridge_image="bridge:test",
    trainer_image="trainer:test",
    parameter_server_image="parameter-server:test",
)
TRAIN = {"class": "train", "name": "diloco"}
AGGREGATE = {"class": "aggregate", "name": "parameter-server"}


def worker_manifest(namespace: str = "gpu", *, executor: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A HyphaWorker with four GPUs, a trainer and a parameter server; `executor` adds to the trainer."""
    return {
        "apiVersion": API_VERSION,
        "kind": "HyphaWorker",
        "metadata": {"name": WORKER, "namespace": namespace, "uid": WORKER_UID, "generation": 1},
        "spec": {
            "identity": {"secretName": "gpu-worker-identity"},
            "network": {"gateways": ["/dns4/gateway.example.org/tcp/4001"]},
            "resources": {
                "cpu": "8",
                "memory": "64Gi",
                "storage": "1Ti",
                "gpu": {"resourceName": "nvidia.com/gpu", "count": 4, "memory": "48Gi"},
            },
            "executors": [TRAIN | (executor or {}), AGGREGATE],
            **spec,
        },
    }


def worker_spec(**changes: Any) -> HyphaWorkerSpec:
    """The same worker's specification."""
    return HyphaWorkerSpec.model_validate(worker_manifest(**changes)["spec"])


def hypha_job(
    namespace: str = "gpu",
    *,
    task_id: UUID | None = None,
    executor: dict[str, Any] = TRAIN,
    status: dict[str, Any] | None = None,
    worker_uid: str = WORKER_UID,
    **spec: Any,
) -> dict[str, Any]:
    """A HyphaJob of this worker; keys of `spec` replace those that every job has."""
    task_id = task_id or uuid4()
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "HyphaJob",
        "metadata": {
            "name": job_name(task_id),
            "namespace": namespace,
            "uid": str(uuid4()),
            "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {WORKER_LABEL: WORKER},
        },
        "spec": {
            "workerRef": {"name": WORKER, "uid": worker_uid},
            "workerPeerId": PEER,
            "taskId": str(task_id),
            "jobId": str(uuid4()),
            "scheduler": PEER,
            "lease": {"id": str(uuid4()), "deadline": "2026-01-01T01:00:00Z"},
            "executor": executor,
            "resources": {"cpu": 4.0, "memory": 16.0, "storage": 100.0, "gpu": 0.0},
            "ttlSecondsAfterFinished": 3600,
            **copy.deepcopy(spec),
        },
    }
    if status is not None:
        manifest["status"] = status
    return manifest


def job_spec(**changes: Any) -> HyphaJobSpec:
    """Its specification."""
    return HyphaJobSpec.model_validate(hypha_job(**changes)["spec"])
