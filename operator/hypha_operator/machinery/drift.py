"""Compare an object with what the operator applied."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from hypha_contracts.names import APPLIED_ANNOTATION
from hypha_contracts.units import parse_quantity
from hypha_operator.machinery.kinds import Manifest

_ATOMIC: Final = frozenset({"selector", "podSelector", "nodeSelector"})
"""Fields that must match completely, because an additional entry in a selector makes it select less."""


def marked(desired: Manifest) -> Manifest:
    """Return a manifest with its digest as an annotation."""
    digest = sha256(json.dumps(desired, sort_keys=True).encode()).hexdigest()[:16]
    metadata = desired["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def is_owned(manifest: Manifest, owner: Manifest) -> bool:
    """Whether one of an object's owner references has the uid of this owner."""
    owners: Sequence[Mapping[str, Any]] = manifest["metadata"].get("ownerReferences") or ()
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in owners)


def is_applied(observed: Manifest | None, desired: Manifest) -> bool:
    """Whether an object matches a marked manifest. Other clients or the API server may have added fields."""
    return observed is not None and covers(observed, desired)


def covers(observed: Any, desired: Any) -> bool:
    """Whether an observed value contains a desired one.

    Empty values may be missing, lists of named items may have more items, and equal quantities may be written
    differently (1000m is 1).
    """
    if isinstance(desired, Mapping):
        observed = observed if isinstance(observed, Mapping) else {}
        return all(
            (observed.get(key) or {}) == value if key in _ATOMIC else covers(observed.get(key), value)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _covers_list(observed if isinstance(observed, list) else [], desired)
    left_out = not desired and observed is None
    return left_out or bool(desired == observed) or _same_amount(desired, observed)


def _covers_list(observed: list[Any], desired: list[Any]) -> bool:
    before, after = _by_name(observed), _by_name(desired)
    if before is not None and after is not None:
        return all(covers(before.get(name), item) for name, item in after.items())
    return len(observed) == len(desired) and all(map(covers, observed, desired))


def _by_name(items: list[Any]) -> dict[str, Any] | None:
    """Return items by name, or None unless every item has a unique name."""
    named = {item["name"]: item for item in items if isinstance(item, Mapping) and isinstance(item.get("name"), str)}
    return named if len(named) == len(items) else None


def _same_amount(desired: Any, observed: Any) -> bool:
    if isinstance(desired, bool) or isinstance(observed, bool):
        return False
    try:
        return parse_quantity(str(desired)) == parse_quantity(str(observed))
    except ValueError:
        return False
