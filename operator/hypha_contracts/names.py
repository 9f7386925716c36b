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
NAMESPACE_LABEL: Final = f"{GROUP}/namespace"
"""On cluster-scoped objects: the namespace of the HyphaWorker that they belong to."""
CONFIG_ANNOTATION: Final = f"{GROUP}/config"
"""On the controller's pod: a digest of its configuration."""
APPLIED_ANNOTATION: Final = f"{GROUP}/applied"
"""On every object that the operator applies: a digest of what it applied."""
DRAIN_FINALIZER: Final = f"{GROUP}/drain"

CONTROLLER: Final = "worker"
"""The container of the controller's pod that runs the node."""
BRIDGE: Final = "bridge"
EXECUTOR: Final = "executor"

CONNECTOR_PORT: Final = 8443
"""Where bridges and the kubelet's probes reach the node."""
TOKEN_AUDIENCE: Final = "hypha-connector"  # noqa: S105 - for whom tokens are issued
JOB_FILE_KEY: Final = "job.json"
"""The key of a job's Secret that holds the complete job specification."""
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


def reviewer_binding(namespace: str, worker: str) -> str:
    """Return the name of the ClusterRoleBinding that lets the controller have its jobs' tokens reviewed.

    The binding has no namespace, so the dot, which neither part may contain, keeps `a-b` and `c` apart from `a` and
    `b-c`.
    """
    return f"hypha-{namespace}.{worker}-token-reviewer"


def controller_labels(worker: str) -> dict[str, str]:
    """Return the labels of every object that belongs to a worker's controller."""
    return _labels(worker, "controller") | {WORKER_LABEL: worker}


def controller_selector(worker: str) -> dict[str, str]:
    """Return the labels that select the controller's pod."""
    return {WORKER_LABEL: worker, _COMPONENT_LABEL: "controller"}


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
