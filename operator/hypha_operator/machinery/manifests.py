"""Parts that several manifests share: identity and metadata, security contexts, and tolerations."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hypha_contracts.addresses import Block
from hypha_contracts.kinds import Kind, Manifest
from hypha_contracts.names import USER_ID, WORKER_KIND, controller_labels, job_labels, owner_reference

_USER_IDS: Final = {"runAsUser": USER_ID, "runAsGroup": USER_ID, "fsGroup": USER_ID}
CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod_security(*, user_ids: bool) -> dict[str, Any]:
    """Return the security context of a pod, with or without the ids of its user and group."""
    ids = _USER_IDS if user_ids else {}
    return {"runAsNonRoot": True, **ids, "seccompProfile": {"type": "RuntimeDefault"}}


def identity_of(manifest: Manifest) -> Manifest:
    """Return the part of a manifest that identifies the object. Its uid prevents writes to a successor of the name."""
    metadata = {key: manifest["metadata"][key] for key in ("name", "namespace", "uid")}
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": metadata}


def child(owner: Manifest, kind: Kind, name: str, **content: Any) -> Manifest:
    """Return an object that a HyphaWorker or a HyphaJob owns, in the owner's namespace."""
    metadata = owner["metadata"]
    if owner["kind"] == WORKER_KIND:
        labels = controller_labels(metadata["name"])
    else:
        labels = job_labels(owner["spec"]["workerRef"]["name"], metadata["name"])
    reference = owner_reference(owner["kind"], metadata["name"], metadata["uid"], block_deletion=True)
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "ownerReferences": [reference],
        },
        **content,
    }


def ip_blocks(blocks: Iterable[Block]) -> list[Manifest]:
    """Return blocks of addresses as peers of a NetworkPolicy. Their ports belong into the rule."""
    return [
        {"ipBlock": {"cidr": str(block.network), **({"except": [*map(str, block.excluded)]} if block.excluded else {})}}
        for block in blocks
    ]


def with_common(manifest: Manifest, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Manifest:
    """Return a manifest that also has these labels and annotations, like its pod template. Its own take precedence."""
    metadata = dict(manifest.get("metadata") or {})
    for field, common in (("labels", labels), ("annotations", annotations)):
        if common:
            metadata[field] = {**common, **(metadata.get(field) or {})}
    template = (manifest.get("spec") or {}).get("template")
    made = {"spec": manifest["spec"] | {"template": with_common(template, labels, annotations)}} if template else {}
    return {**manifest, "metadata": metadata, **made}


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
