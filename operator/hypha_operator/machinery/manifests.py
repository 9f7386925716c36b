"""Parts that several manifests share: the metadata of a worker's children, and tolerations."""

from typing import Any

from hypha_contracts.names import WORKER_KIND, controller_labels, owner_reference
from hypha_operator.machinery.kinds import Kind, Manifest


def child(hypha_worker: Manifest, kind: Kind, name: str, **content: Any) -> Manifest:
    """Return an object in the worker's namespace that the worker owns."""
    metadata = hypha_worker["metadata"]
    owner = owner_reference(WORKER_KIND, metadata["name"], metadata["uid"], block_deletion=True)
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": controller_labels(metadata["name"]),
            "ownerReferences": [owner],
        },
        **content,
    }


def lost_node_tolerations(seconds: int) -> list[dict[str, Any]]:
    """Return the tolerations of a pod that stays this long on a node that does not answer."""
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for state in ("not-ready", "unreachable")
    ]
