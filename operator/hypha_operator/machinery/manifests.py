"""What all children of a HyphaWorker have in common: names, labels, their owner."""

from typing import Any, Final

from hypha_operator.machinery.kinds import Kind, Manifest
from hypha_resources.common import API_VERSION, WORKER_LABEL

NAMESPACE_LABEL: Final = "hypha.space/namespace"
"""On what has no namespace: that of the HyphaWorker it belongs to."""


def controller_name(worker: str) -> str:
    """Return the name of most of what makes up the controller."""
    return f"{worker}-controller"


def job_account(worker: str) -> str:
    """Return the name of the service account of all jobs: it has no rights, only a name."""
    return f"{worker}-job"


def identity_secret(worker: str) -> str:
    """Return the name of the Secret of a certificate that an issuer makes."""
    return f"{worker}-identity"


def reviewer_binding(namespace: str, worker: str) -> str:
    """Return the name of what lets the controller have its jobs' tokens reviewed.

    It has no namespace, so the dot, which neither part can have, keeps `a-b` and `c` apart from `a` and `b-c`.
    """
    return f"hypha-{namespace}.{worker}-token-reviewer"


def labels(worker: str) -> dict[str, str]:
    """Return the labels of everything that belongs to a worker's controller."""
    return {
        "app.kubernetes.io/name": "hypha-worker",
        "app.kubernetes.io/instance": worker,
        "app.kubernetes.io/component": "controller",
        "app.kubernetes.io/managed-by": "hypha-operator",
        WORKER_LABEL: worker,
    }


def selector(worker: str) -> dict[str, str]:
    """Return the labels by which the controller's pod is found."""
    return {WORKER_LABEL: worker, "app.kubernetes.io/component": "controller"}


def child(hypha_worker: Manifest, kind: Kind, name: str, **content: Any) -> Manifest:
    """Return an object of the worker's namespace that goes when the worker goes."""
    metadata = hypha_worker["metadata"]
    owner = {
        "apiVersion": API_VERSION,
        "kind": "HyphaWorker",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels(metadata["name"]),
            "ownerReferences": [owner],
        },
        **content,
    }


def lost_node_tolerations(seconds: int) -> list[dict[str, Any]]:
    """Return the tolerations of a pod that stays this long on a node that is not heard of."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for state in ("not-ready", "unreachable")
    ]
