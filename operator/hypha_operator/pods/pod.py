"""Build the pod of a job: the bridge as a sidecar, the executor, and their volumes."""

from pathlib import Path
from typing import Any, Final

from hypha_contracts.bridge_config import CONFIG_VARIABLE, BridgeConfig, ConnectorConfig
from hypha_contracts.names import (
    BRIDGE,
    CONNECTOR_PORT,
    EXECUTOR,
    JOB_FILE_KEY,
    TOKEN_AUDIENCE,
    connector_service_name,
    job_account,
    job_labels,
)
from hypha_contracts.times import STOP_S, connector_deadline_s
from hypha_operator.machinery.manifests import CONTAINER_SECURITY, POD_SECURITY, lost_node_tolerations
from hypha_operator.pods.executor import (
    CLAIM,
    JOB_FILE,
    SOCKET,
    WORK_DIR,
    devices_of,
    executor_command,
    executor_environment,
    executor_of,
    executor_resources,
    memory_bytes,
    storage_bytes,
    to_env,
)
from hypha_operator.settings import Settings
from hypha_resources.job import HyphaJobSpec
from hypha_resources.worker import HyphaWorkerSpec

_JOB_DIR: Final = "/job"
_TOKEN_DIR: Final = "/var/run/hypha/token"  # noqa: S105 - a directory
_TOKEN_LIFETIME_S: Final = 3600
_LOST_NODE_S: Final = 60
"""How long a pod stays on a node that does not answer."""
_BRIDGE_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
_SPEC_MOUNT: Final = {"name": "spec", "mountPath": JOB_FILE.rpartition("/")[0], "readOnly": True}


def pod_template(
    name: str, namespace: str, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings
) -> dict[str, Any]:
    """Return the pod template of a HyphaJob, before the executor's own template is merged into it.

    Raises:
        UnbuildableJobError: the worker lacks the executor or GPUs.
    """
    executor, gpu = executor_of(job, worker), worker.resources.gpu
    spec: dict[str, Any] = {
        "serviceAccountName": job_account(job.worker_ref.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": worker.jobs.termination_grace_seconds + STOP_S,
        "securityContext": POD_SECURITY,
        "tolerations": lost_node_tolerations(_LOST_NODE_S),
        "initContainers": [_bridge(namespace, job, worker, settings)],
        "containers": [_executor(job, worker, settings)],
        "volumes": _volumes(name, job),
    }
    if worker.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in worker.image_pull_secrets]
    if executor.runtime_class_name:
        spec["runtimeClassName"] = executor.runtime_class_name
    if gpu and gpu.device_class_name and devices_of(job, worker):
        spec["resourceClaims"] = [{"name": CLAIM, "resourceClaimTemplateName": name}]
    return {"metadata": {"labels": job_labels(job.worker_ref.name, name)}, "spec": spec}


def _bridge(namespace: str, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings) -> dict[str, Any]:
    config = BridgeConfig(
        job_file=Path(JOB_FILE),
        work_dir=Path(WORK_DIR),
        socket=Path(SOCKET),
        state_dir=Path(_JOB_DIR, "state"),
        storage_bytes=storage_bytes(job),
        drain_s=worker.jobs.termination_grace_seconds,
        read_ahead=worker.jobs.read_ahead,
        allow_private_addresses=worker.jobs.allow_private_addresses,
        exclude_cidr=worker.jobs.exclude_cidr,
        hub_endpoint=worker.jobs.hub_endpoint,
        connector=ConnectorConfig(
            url=f"https://{connector_service_name(job.worker_ref.name)}.{namespace}.svc:{CONNECTOR_PORT}",
            peer_id=job.worker_peer_id,
            token_file=Path(_TOKEN_DIR, "token"),
            deadline_s=connector_deadline_s(worker.leases.duration_seconds),
        ),
    )
    return {
        "name": BRIDGE,
        "image": settings.bridge_image,
        "imagePullPolicy": settings.image_pull_policy,
        "restartPolicy": "Always",  # a native sidecar: starts before the executor and stops after it
        "env": to_env({CONFIG_VARIABLE: config.to_json()}),
        "startupProbe": {"exec": {"command": ["test", "-S", SOCKET]}, "periodSeconds": 1, "failureThreshold": 120},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": _BRIDGE_RESOURCES,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "job", "mountPath": _JOB_DIR},
            _SPEC_MOUNT,
            {"name": "token", "mountPath": _TOKEN_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of this pod alone
        ],
    }


def _executor(job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings) -> dict[str, Any]:
    executor, devices = executor_of(job, worker), devices_of(job, worker)
    command, args = executor_command(executor, devices)
    default_image = settings.trainer_image if executor.class_ == "train" else settings.parameter_server_image
    return {
        "name": EXECUTOR,
        "image": executor.image or default_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "args": args,
        "workingDir": WORK_DIR,
        "env": executor_environment(job, executor, devices),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": executor_resources(job, worker),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "job", "mountPath": WORK_DIR, "subPath": "work"},
            {"name": "job", "mountPath": "/tmp", "subPath": "work/tmp"},  # noqa: S108 - part of the lease's storage
            _SPEC_MOUNT,
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the workers of PyTorch share tensors there
        ],
    }


def _volumes(name: str, job: HyphaJobSpec) -> list[dict[str, Any]]:
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": _TOKEN_LIFETIME_S, "path": "token"}
    return [
        {"name": "job", "emptyDir": {"sizeLimit": str(storage_bytes(job))}},
        # Mount only this key. The controller may choose the Secret's type, and to Secrets of type
        # kubernetes.io/service-account-token, the cluster adds a token.
        {"name": "spec", "secret": {"secretName": name, "items": [{"key": JOB_FILE_KEY, "path": JOB_FILE_KEY}]}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(memory_bytes(job) // 2)}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]
