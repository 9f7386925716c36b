"""Hand the fields of a created object over to server-side apply.

The API server records the fields that a client set by its name and by the operation. An apply removes a field that an
earlier apply of the same client set and that it leaves out. It keeps a field that a create set. So before the operator
applies a manifest that may leave fields out, the API server has to record the create as an apply.
"""

from collections.abc import Mapping
from typing import Any, Final

from hypha_contracts.kinds import Manifest
from hypha_operator.machinery.manifests import identity_of

FIELD_MANAGER: Final = "hypha-operator"
CREATED: Final = ({"manager": FIELD_MANAGER, "operation": "Update"},)
"""Entries of `managedFields`, without the fields, of an object that the operator created and has not handed over."""


def _is_create(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `managedFields` holds the fields that the operator set by creating the object."""
    return _is(entry, "Update")


def is_handed_over(manifest: Manifest) -> bool:
    """Whether an apply by the operator removes every field of its own that it leaves out."""
    return not any(map(_is_create, manifest["metadata"].get("managedFields") or ()))


def handed_over(manifest: Manifest) -> Manifest:
    """Return the change (merge patch) that has the API server record the operator's create as an apply.

    Args:
        manifest: the object as the API server returned it. The change is refused if the object has changed since.
    """
    entries = manifest["metadata"]["managedFields"]
    created = [entry for entry in entries if _is_create(entry)]
    applied = next((entry for entry in entries if _is(entry, "Apply")), created[0])
    fields: Mapping[str, Any] = {}
    for entry in (applied, *created):
        fields = _union(fields, entry["fieldsV1"])
    kept = [entry for entry in entries if entry is not applied and entry not in created]
    change = identity_of(manifest)
    change["metadata"] |= {
        "resourceVersion": manifest["metadata"]["resourceVersion"],
        "managedFields": [*kept, {**applied, "operation": "Apply", "fieldsV1": fields}],
    }
    return change


def _is(entry: Mapping[str, Any], operation: str) -> bool:
    found = entry.get("manager"), entry.get("operation"), entry.get("subresource", "")
    return found == (FIELD_MANAGER, operation, "")


def _union(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of both sets."""
    return {
        **one,
        **{key: _union(one.get(key, {}), inner) for key, inner in other.items()},
    }
