"""Build the pod of a job: the bridge as a sidecar, the executor, and their volumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hypha_contracts.bridge_config import (
    CONFIG_VARIABLE,
    BridgeConfig,
    CacheConfig,
    ConnectorConfig,
    LentToken,
    OpenedNetwork,
)
from hypha_contracts.names import (
    BRIDGE,
    CONNECTOR_PORT,
    EXECUTOR,
    JOB_FILE_KEY,
    OUTPUT_VOLUME,
    TOKEN_AUDIENCE,
    TRACE_ANNOTATION,
    connector_service_name,
    job_account,
    job_labels,
)
from hypha_contracts.proxies import Proxies
from hypha_contracts.times import STOP_S, connector_deadline_s
from hypha_contracts.trace_context import VARIABLE, parse_trace_context
from hypha_contracts.units import parse_quantity
from hypha_operator.machinery.manifests import CONTAINER_SECURITY, lost_node_tolerations, pod_security, with_common
from hypha_operator.pods.accelerate import (
    ACCELERATE_ANNOTATION,
    ACCELERATE_MOUNT,
    accelerate_file,
    accelerate_volume,
)
from hypha_operator.pods.addons import NO_MESH_LABELS, job_annotations
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
from hypha_resources.worker_jobs import Cache

_JOB_DIR: Final = "/job"
_TOKEN_DIR: Final = "/var/run/hypha/token"  # noqa: S105 - a directory
_TOKEN_LIFETIME_S: Final = 3600
_LOST_NODE_S: Final = 60
"""How long a pod stays on a node that does not answer."""
_BRIDGE_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
_HUB_TOKEN_DIR: Final = "/var/run/hypha/hub"  # noqa: S105 - a directory
_HUB_TOKEN_MOUNT: Final = {"name": "hub-token", "mountPath": _HUB_TOKEN_DIR, "readOnly": True}
"""Of the bridge alone, so that a job's code cannot read the token."""
_CACHE_MOUNT: Final = {"name": "cache", "mountPath": "/cache"}
"""Of the bridge alone, so that a job's code cannot write to it."""
TRUST_FILE: Final = "/etc/hypha/trust/ca.crt"
"""Authorities besides the public ones, in bridge and executor."""
_TRUST_MOUNT: Final = {"name": "trust", "mountPath": TRUST_FILE.rpartition("/")[0], "readOnly": True}
_OUTPUT_DIR: Final = "/output"
_SPEC_MOUNT: Final = {"name": "spec", "mountPath": JOB_FILE.rpartition("/")[0], "readOnly": True}


def pod_template(
    metadata: Mapping[str, Any], job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings
) -> dict[str, Any]:
    """Return the pod template of a HyphaJob with this metadata, before the executor's template is merged into it.

    Raises:
        UnbuildableJobError: the worker lacks the executor or GPUs.
    """
    executor, gpu, name = executor_of(job, worker), worker.resources.gpu, metadata["name"]
    trace = trace_variables(metadata)
    spec: dict[str, Any] = {
        "serviceAccountName": job_account(job.worker_ref.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": worker.jobs.termination_grace_seconds + STOP_S,
        "securityContext": pod_security(user_ids=settings.user_ids),
        "tolerations": lost_node_tolerations(_LOST_NODE_S),
        "initContainers": [_bridge(metadata["namespace"], job, worker, settings, trace)],
        "containers": [_executor(name, job, worker, settings, trace)],
        "volumes": [*_volumes(name, job, worker), *_optional_volumes(job, worker)],
    }
    if worker.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in worker.image_pull_secrets]
    if executor.runtime_class_name:
        spec["runtimeClassName"] = executor.runtime_class_name
    if gpu and gpu.device_class_name and devices_of(job, worker):
        spec["resourceClaims"] = [{"name": CLAIM, "resourceClaimTemplateName": name}]
    labels = {**NO_MESH_LABELS, **job_labels(job.worker_ref.name, name)}
    annotations = dict(job_annotations(worker.jobs))
    if executor.class_ == "train":
        annotations[ACCELERATE_ANNOTATION] = accelerate_file(executor.accelerate, devices_of(job, worker))
        spec["volumes"].append(accelerate_volume())
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def trace_variables(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable with the trace context of a HyphaJob, if it has one."""
    context = parse_trace_context((metadata.get("annotations") or {}).get(TRACE_ANNOTATION))
    return {VARIABLE: str(context)} if context else {}


def _bridge(
    namespace: str, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings, trace: Mapping[str, str]
) -> dict[str, Any]:
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
        opened=_opened(worker),
        hub_endpoint=worker.jobs.hub_endpoint,
        proxy=Proxies(**worker.jobs.proxy.model_dump(by_alias=False)) if worker.jobs.proxy else None,
        trust_pem=Path(TRUST_FILE) if worker.jobs.trust_bundle else None,
        hub_token=_lent_token(worker),
        cache=_cache_config(job, worker),
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
        "env": to_env({CONFIG_VARIABLE: config.to_json(), **trace}),
        "startupProbe": {"exec": {"command": ["test", "-S", SOCKET]}, "periodSeconds": 1, "failureThreshold": 120},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": bridge_resources(worker),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "job", "mountPath": _JOB_DIR},
            _SPEC_MOUNT,
            {"name": "token", "mountPath": _TOKEN_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of this pod alone
            *([_HUB_TOKEN_MOUNT] if worker.jobs.hub_token else []),
            *([_CACHE_MOUNT] if _cache(job, worker) else []),
            *([_TRUST_MOUNT] if worker.jobs.trust_bundle else []),
        ],
    }


def _opened(worker: HyphaWorkerSpec) -> list[OpenedNetwork]:
    """Return the networks that the worker's egress rules open for TCP, as its NetworkPolicy does."""
    return [
        OpenedNetwork(cidr=peer.ip_block.cidr, excluded=peer.ip_block.except_, ports=ports)
        for rule in worker.jobs.egress
        for ports in [[(port.port, port.end_port or port.port) for port in rule.ports if port.protocol == "TCP"]]
        for peer in rule.to
        if peer.ip_block and (ports or not rule.ports)
    ]


def _lent_token(worker: HyphaWorkerSpec) -> LentToken | None:
    token = worker.jobs.hub_token
    if token is None:
        return None
    return LentToken(file=Path(_HUB_TOKEN_DIR, "token"), repositories=frozenset(token.repositories))


def _cache(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> Cache | None:
    """Return the cache of a job that may download a model."""
    return None if job.executor.class_ == "aggregate" else worker.jobs.cache


def _cache_config(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> CacheConfig | None:
    cache = _cache(job, worker)
    if cache is None:
        return None
    return CacheConfig(directory=Path(_CACHE_MOUNT["mountPath"]), max_bytes=int(parse_quantity(cache.max_bytes)))


def _cache_volume(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> list[dict[str, Any]]:
    cache = _cache(job, worker)
    return [{"name": "cache", "persistentVolumeClaim": {"claimName": cache.claim}}] if cache else []


def _executor(
    name: str, job: HyphaJobSpec, worker: HyphaWorkerSpec, settings: Settings, trace: Mapping[str, str]
) -> dict[str, Any]:
    executor, devices = executor_of(job, worker), devices_of(job, worker)
    command, args = executor_command(executor)
    variables = {**trace, "OUTPUT_DIR": _OUTPUT_DIR} if _output_claim(job, worker) else trace
    default_image = settings.parameter_server_image if executor.class_ == "aggregate" else settings.trainer_image
    return {
        "name": EXECUTOR,
        "image": executor.image or default_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": command,
        "args": args,
        "workingDir": WORK_DIR,
        "env": executor_environment(job, executor, devices, variables),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "resources": executor_resources(job, worker),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "job", "mountPath": WORK_DIR, "subPath": "work"},
            {"name": "job", "mountPath": "/tmp", "subPath": "work/tmp"},  # noqa: S108 - part of the lease's storage
            _SPEC_MOUNT,
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the workers of PyTorch share tensors there
            *([_output_mount(name)] if _output_claim(job, worker) else []),
            *([ACCELERATE_MOUNT] if executor.class_ == "train" else []),
            *([_TRUST_MOUNT] if worker.jobs.trust_bundle else []),
        ],
    }


def bridge_resources(worker: HyphaWorkerSpec) -> dict[str, dict[str, str]]:
    """Return requests and limits of the bridge's container, which come on top of the lease."""
    resources = worker.jobs.bridge_resources
    return {
        "requests": _BRIDGE_RESOURCES["requests"] | resources.requests,
        "limits": _BRIDGE_RESOURCES["limits"] | resources.limits,
    }


def _job_volume(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> dict[str, Any]:
    """Return the volume of the work directory and of the bridge's state."""
    size, class_name = str(storage_bytes(job)), worker.jobs.storage.storage_class_name
    if class_name is None:
        return {"emptyDir": {"sizeLimit": size}}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": class_name,
        "resources": {"requests": {"storage": size}},
    }
    template = with_common({"spec": claim}, worker.common_labels, worker.common_annotations)
    return {"ephemeral": {"volumeClaimTemplate": template}}


def _volumes(name: str, job: HyphaJobSpec, worker: HyphaWorkerSpec) -> list[dict[str, Any]]:
    token = {"audience": TOKEN_AUDIENCE, "expirationSeconds": _TOKEN_LIFETIME_S, "path": "token"}
    return [
        {"name": "job", **_job_volume(job, worker)},
        # Mount only this key. The controller may choose the Secret's type, and to Secrets of type
        # kubernetes.io/service-account-token, the cluster adds a token.
        {"name": "spec", "secret": {"secretName": name, "items": [{"key": JOB_FILE_KEY, "path": JOB_FILE_KEY}]}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(memory_bytes(job) // 2)}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
    ]


def _optional_volumes(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> list[dict[str, Any]]:
    return [
        *_hub_token_volume(worker),
        *_cache_volume(job, worker),
        *_trust_volume(worker),
        *_output_volume(job, worker),
    ]


def _trust_volume(worker: HyphaWorkerSpec) -> list[dict[str, Any]]:
    """Return the volume with authorities besides the public ones, if the worker has any."""
    if (bundle := worker.jobs.trust_bundle) is None:
        return []
    items = [{"key": bundle.key, "path": TRUST_FILE.rpartition("/")[2]}]
    return [{"name": "trust", "configMap": {"name": bundle.name, "items": items}}]


def _output_claim(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> str | None:
    """Return the claim in which an executor keeps its results: a trained model, or predictions."""
    return None if job.executor.class_ == "aggregate" else worker.jobs.output_claim


def _output_mount(name: str) -> dict[str, Any]:
    """Return the mount of the job's own directory, so that its code sees no model of another job."""
    return {"name": OUTPUT_VOLUME, "mountPath": _OUTPUT_DIR, "subPath": name}


def _output_volume(job: HyphaJobSpec, worker: HyphaWorkerSpec) -> list[dict[str, Any]]:
    claim = _output_claim(job, worker)
    return [{"name": OUTPUT_VOLUME, "persistentVolumeClaim": {"claimName": claim}}] if claim else []


def _hub_token_volume(worker: HyphaWorkerSpec) -> list[dict[str, Any]]:
    """Return the volume with the lent token. If its Secret is missing, only fetches that need the token fail."""
    if worker.jobs.hub_token is None:
        return []
    secret = worker.jobs.hub_token.secret
    items = [{"key": secret.key, "path": "token"}]
    source = {"secretName": secret.name, "items": items, "defaultMode": 0o440, "optional": True}
    return [{"name": "hub-token", "secret": source}]
