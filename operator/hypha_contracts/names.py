"""Names that node and operator share: kinds, labels, annotations, objects of a worker, containers, ports, accounts."""

from typing import Any, Final
from uuid import UUID

GROUP: Final = "hypha.space"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
WORKER_KIND: Final = "HyphaWorker"
WORKERS: Final = "hyphaworkers"
JOB_KIND: Final = "HyphaJob"
JOBS: Final = "hyphajobs"

WORKER_LABEL: Final = f"{GROUP}/worker"
"""On every child of a HyphaWorker and every HyphaJob: the worker's name."""
JOB_LABEL: Final = f"{GROUP}/job"
"""On every child of a HyphaJob: the job's name."""
CONFIG_ANNOTATION: Final = f"{GROUP}/config"
"""On the controller's pod: a digest of its configuration."""
APPLIED_ANNOTATION: Final = f"{GROUP}/applied"
"""On every object that the operator applies: a digest of what it applied."""
TRACE_ANNOTATION: Final = f"{GROUP}/traceparent"
"""On a HyphaJob: the span, as W3C trace context, in which its pod runs. The node sets it if it exports telemetry."""
PROBED_ANNOTATION: Final = f"{GROUP}/probed"
"""On a probe's Job: class and name of the executor that it starts."""
GENERATION_ANNOTATION: Final = f"{GROUP}/generation"
"""On a probe's Job: the generation of the HyphaWorker for which it was made."""
QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""On a Job that Kueue queues: the LocalQueue."""
IGNORE_UPDATES_ANNOTATION: Final = "argocd.argoproj.io/ignore-resource-updates"
"""On every HyphaJob, so that its renewals do not refresh ArgoCD's Application (docs/operations.md)."""
DRAIN_FINALIZER: Final = f"{GROUP}/drain"

CONTROLLER: Final = "worker"
"""The container of the controller's pod that runs the node."""
BRIDGE: Final = "bridge"
EXECUTOR: Final = "executor"

OUTPUT_VOLUME: Final = "output"
"""The volume of a job's pod in which the trainer keeps its model."""

CONNECTOR_PORT: Final = 8443
"""Where bridges and the kubelet's probes reach the node."""
METRICS_PORT: Final = 9464
"""Where Prometheus reads the metrics of the controller's pod."""
STATUS_PAGE_PORT: Final = 8081
"""Where browsers reach the status page of the controller's pod, if the worker has one."""
TOKEN_AUDIENCE: Final = "hypha-connector"  # noqa: S105 - for whom tokens are issued
JOB_FILE_KEY: Final = "job.json"
"""The key of a job's Secret that holds the complete job specification."""
LEASE_GPUS: Final = "LEASE_GPUS"
"""The variable that tells an executor how many GPUs its lease has."""
USER_ID: Final = 65532
"""The user and group of every process in a pod."""

_COMPONENT_LABEL: Final = "app.kubernetes.io/component"


def controller_name(worker: str) -> str:
    """Return the name of the controller's Deployment, and of most objects that belong to it."""
    return f"{worker}-controller"


def connector_service_name(worker: str) -> str:
    """Return the name of the Service through which bridges reach the node."""
    return f"{worker}-connector"


def p2p_service_name(worker: str) -> str:
    """Return the name of the Service through which peers outside the cluster reach the node."""
    return f"{worker}-p2p"


def status_service_name(worker: str) -> str:
    """Return the name of the Service of the worker's status page."""
    return f"{worker}-status"


def identity_secret(worker: str) -> str:
    """Return the name of the Secret with a certificate that an issuer makes."""
    return f"{worker}-identity"


def job_account(worker: str) -> str:
    """Return the name of the service account of all jobs, which has no permissions."""
    return f"{worker}-job"


def job_user(namespace: str, worker: str) -> str:
    """Return the name by which the API server knows the service account of all jobs."""
    return f"system:serviceaccount:{namespace}:{job_account(worker)}"


def job_name(task_id: UUID) -> str:
    """Return the name of a task's HyphaJob, Job and Secret."""
    return f"hypha-{task_id}"


def probe_name(worker: str) -> str:
    """Return the name of the Job with which the operator finds out whether a worker's jobs start."""
    return f"{worker}-probe"


def controller_labels(worker: str) -> dict[str, str]:
    """Return the labels of every object that belongs to a worker's controller."""
    return _labels(worker, "controller") | {WORKER_LABEL: worker}


def controller_selector(worker: str) -> dict[str, str]:
    """Return the labels that select the controller's pod."""
    return {WORKER_LABEL: worker, _COMPONENT_LABEL: "controller"}


def probe_labels(worker: str) -> dict[str, str]:
    """Return the labels of a worker's probe."""
    return _labels(worker, "probe") | {WORKER_LABEL: worker}


def job_labels(worker: str, job: str) -> dict[str, str]:
    """Return the labels of every object that belongs to a HyphaJob."""
    return _labels(worker, "job") | {WORKER_LABEL: worker, JOB_LABEL: job}


def job_selector(worker: str) -> dict[str, str]:
    """Return the labels that select the pods of a worker's jobs."""
    return {WORKER_LABEL: worker, _COMPONENT_LABEL: "job"}


def owner_reference(kind: str, name: str, uid: str, *, block_deletion: bool) -> dict[str, Any]:
    """Return the reference to a HyphaWorker or HyphaJob by which an object is deleted with its owner.

    Args:
        kind: `WORKER_KIND` or `JOB_KIND`.
        name: the owner's name.
        uid: the owner's uid.
        block_deletion: whether a foreground deletion of the owner waits for the object.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": block_deletion,
    }


def _labels(worker: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "hypha-worker",
        "app.kubernetes.io/instance": worker,
        _COMPONENT_LABEL: component,
        "app.kubernetes.io/managed-by": "hypha-operator",
    }
