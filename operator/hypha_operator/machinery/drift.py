"""Compare an object with what the operator applied."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.names import APPLIED_ANNOTATION
from hypha_contracts.units import parse_quantity

_ATOMIC: Final = frozenset({"selector", "podSelector", "nodeSelector"})
"""Fields that must match completely, because an additional entry in a selector makes it select less."""

_ITEM_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "tolerations": ("key", "operator", "value", "effect"),
    "volumeMounts": ("mountPath",),
}
"""What identifies the items of a list to which admission adds items. In other lists, names do."""


def marked(desired: Manifest) -> Manifest:
    """Return a manifest with its digest as an annotation."""
    digest = sha256(json.dumps(desired, sort_keys=True).encode()).hexdigest()[:16]
    metadata = desired["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest}
    return {**desired, "metadata": {**metadata, "annotations": annotations}}


def digest_of(manifest: Manifest) -> str | None:
    """Return the digest with which a manifest is marked, or None."""
    digest: str | None = (manifest["metadata"].get("annotations") or {}).get(APPLIED_ANNOTATION)
    return digest


def is_owned(manifest: Manifest, owner: Manifest) -> bool:
    """Whether one of an object's owner references has the uid of this owner."""
    owners: Sequence[Mapping[str, Any]] = manifest["metadata"].get("ownerReferences") or ()
    return any(reference["uid"] == owner["metadata"]["uid"] for reference in owners)


def is_applied(observed: Manifest | None, desired: Manifest) -> bool:
    """Whether an object matches a marked manifest. Other clients or the API server may have added fields."""
    return observed is not None and covers(observed, desired)


def projected(observed: Any, desired: Any) -> Any:
    """Return the part of an observed value that a desired one sets, with complete lists."""
    if not (isinstance(observed, Mapping) and isinstance(desired, Mapping)):
        return observed
    return {key: projected(observed.get(key), value) for key, value in desired.items()}


def covers(observed: Any, desired: Any) -> bool:
    """Whether an observed value contains a desired one.

    Empty values may be missing, lists of items with names or other keys may have more items, and equal quantities may
    be written differently (1000m is 1).
    """
    if isinstance(desired, Mapping):
        observed = observed if isinstance(observed, Mapping) else {}
        return all(
            (observed.get(key) or {}) == value if key in _ATOMIC else _covers_field(key, observed.get(key), value)
            for key, value in desired.items()
        )
    if isinstance(desired, list):
        return _covers_field("", observed, desired)
    left_out = not desired and observed is None
    return left_out or bool(desired == observed) or _same_amount(desired, observed)


def _covers_field(field: str, observed: Any, desired: Any) -> bool:
    if not isinstance(desired, list):
        return covers(observed, desired)
    observed, keys = observed if isinstance(observed, list) else [], _ITEM_KEYS.get(field, ("name",))
    before, after = _by_keys(observed, keys), _by_keys(desired, keys)
    if before is not None and after is not None:
        return all(covers(before.get(name), item) for name, item in after.items())
    return len(observed) == len(desired) and all(map(covers, observed, desired))


def _by_keys(items: list[Any], keys: tuple[str, ...]) -> dict[tuple[str, ...], Any] | None:
    """Return items by the values of their keys, or None unless these are texts and identify every item."""
    named = {
        tuple(str(item.get(key, "")) for key in keys): item
        for item in items
        if isinstance(item, Mapping) and any(isinstance(item.get(key), str) for key in keys)
    }
    return named if len(named) == len(items) else None


def _same_amount(desired: Any, observed: Any) -> bool:
    if isinstance(desired, bool) or isinstance(observed, bool):
        return False
    try:
        return parse_quantity(str(desired)) == parse_quantity(str(observed))
    except ValueError:
        return False
