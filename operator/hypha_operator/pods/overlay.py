"""Merge a user's pod template into the operator's, and reject changes that weaken the pod's isolation."""

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hypha_contracts.names import GROUP
from hypha_contracts.times import STOP_S
from hypha_contracts.units import parse_quantity
from hypha_operator.pods.addons import CHANGEABLE
from hypha_operator.pods.harmless import unknown_parts

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "ports": ("containerPort", "protocol"),
    "tolerations": ("key", "operator", "value", "effect"),
    "imagePullSecrets": ("name",),
    "resourceClaims": ("name",),
    "claims": ("name", "request"),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "readinessGates": ("conditionType",),
    "schedulingGates": ("name",),
}
"""Lists that are merged item by item, with the fields that identify an item. The overlay replaces all other lists."""
_DEFAULTS: Final = {"protocol": "TCP"}
_OPTIONAL: Final = frozenset({"protocol", "key", "operator", "value", "effect", "request"})

_FREE: Final = frozenset({"tolerations", "imagePullSecrets", "runtimeClassName"})
"""Pod fields of the operator's that a template may change."""
_POD_CONTEXT: Final = frozenset({"fsGroupChangePolicy", "supplementalGroups", "supplementalGroupsPolicy"})
_CONTAINER_ADDITIONS: Final = frozenset(
    {
        *("image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "ports", "resources", "lifecycle"),
        *("workingDir", "startupProbe", "livenessProbe", "readinessProbe"),
    }
)
_CONTAINER_FREE: Final = frozenset({"image", "imagePullPolicy"})
_RESERVED_LABELS: Final = (f"{GROUP}/", "app.kubernetes.io/", "batch.kubernetes.io/", "job-name", "controller-uid")
_OPT_IN: Final = ", or set allowPrivilegedTemplate on the executor if the job's code is as trusted as the node"


class OverlayError(ValueError):
    """A template is not acceptable. The message names the path in the template and the remedy."""


@dataclass(frozen=True)
class _Violation:
    path: str
    problem: str
    remedy: str
    isolation: bool
    """Whether the problem only weakens isolation, so that allowPrivilegedTemplate permits it."""

    def message(self, *, opt_in: bool) -> str:
        return f"template.{self.path}: {self.problem}; {self.remedy}{_OPT_IN if opt_in and self.isolation else ''}"


def merge_pod_template(
    base: Mapping[str, Any],
    overlay: Mapping[str, Any],
    *,
    allow_privileged: bool | None = None,
    leased: Collection[str] = (),
    keys: Collection[str] = (),
) -> dict[str, Any]:
    """Merge a user's pod template into the operator's.

    Args:
        base: the operator's pod template (metadata, spec). The overlay cannot remove its containers, volumes or labels.
        overlay: the user's template. It merges objects and keyed lists, replaces other values, and removes with null.
        allow_privileged: whether the template may weaken the pod's isolation. None if the user has no such option.
        leased: containers whose resources come from a lease, so that a template cannot change them.
        keys: Secrets with the worker's identity, which no template may mount.

    Raises:
        OverlayError: the overlay is malformed, or changes what it must not change.
    """
    merged = _merge(base, overlay, "")
    context = base["spec"]["containers"][0].get("securityContext", {})
    for field in ("initContainers", "containers"):
        ours = _by_name(base["spec"], field)
        for name, container in _by_name(_mapping(merged.get("spec"), "spec"), field).items():
            if name not in ours:  # confine a container that the template adds like the operator's own
                container["securityContext"] = _merge(
                    context, container.get("securityContext", {}), f"spec.{field}[{name}]"
                )
    found = [*_violations(base, merged, leased, keys)]
    named = tuple(violation.path for violation in found)
    found += [_unsafe(path, problem) for path, problem in unknown_parts(overlay) if not path.startswith(named)]
    if violations := [violation for violation in found if not (allow_privileged and violation.isolation)]:
        opt_in = allow_privileged is not None
        raise OverlayError("; ".join(violation.message(opt_in=opt_in) for violation in violations[:3]))
    return merged


def _merge(base: Mapping[str, Any], overlay: Any, path: str) -> dict[str, Any]:
    """Return a new object, which shares the values of the base that the overlay does not change."""
    if not isinstance(overlay, Mapping):
        raise OverlayError(f"template.{path or 'metadata'}: must be an object, so write fields below it")
    merged = dict(base)
    for name, value in overlay.items():
        here = f"{path}.{name}" if path else str(name)
        ours = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif name in _KEYS and (isinstance(value, list) or isinstance(ours, list)):
            merged[name] = _merge_list(_sequence(ours, here), value, _KEYS[name], here)
        elif isinstance(ours, dict) or (ours is None and isinstance(value, Mapping)):
            merged[name] = _merge(ours or {}, value, here)
        elif isinstance(ours, list) and not isinstance(value, list):
            raise OverlayError(f"template.{here}: must be a list")
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _merge_list(base: list[Any], overlay: Any, keys: tuple[str, ...], path: str) -> list[Any]:
    if not isinstance(overlay, list):
        raise OverlayError(f"template.{path}: must be a list")
    merged = {_identity(item, keys, path): item for item in base}
    named: set[tuple[str, ...]] = set()
    for item in overlay:
        identity = _identity(item, keys, path)
        if identity in named:
            raise OverlayError(f"template.{path}[{_joined(identity)}]: appears twice. Keep one of them.")
        named.add(identity)
        merged[identity] = _merge(merged.get(identity, {}), item, f"{path}[{_joined(identity)}]")
    return list(merged.values())


def _identity(item: Any, keys: tuple[str, ...], path: str) -> tuple[str, ...]:
    if not isinstance(item, Mapping):
        raise OverlayError(f"template.{path}: every item must be an object")
    missing = [key for key in keys if key not in _OPTIONAL and item.get(key) is None]
    if missing:
        raise OverlayError(f"template.{path}: an item has no {missing[0]}, which identifies items. Add it.")
    return tuple(str(item.get(key) or _DEFAULTS.get(key, "")) for key in keys)


def _joined(identity: tuple[str, ...]) -> str:
    return "/".join(filter(None, identity))


def _items(holder: Mapping[str, Any], field: str) -> list[dict[str, Any]]:
    items = _sequence(holder.get(field), field)
    for item in items:
        _mapping(item, field)
    return items


def _by_name(holder: Mapping[str, Any], field: str) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in _items(holder, field)}


def _reserved(
    path: str, problem: str = "is set by the operator and cannot be changed", remedy: str = "remove it"
) -> _Violation:
    return _Violation(path, problem, remedy, isolation=False)


def _unsafe(path: str, problem: str, remedy: str = "remove it") -> _Violation:
    return _Violation(path, problem, remedy, isolation=True)


def _violations(
    base: Mapping[str, Any], merged: Mapping[str, Any], leased: Collection[str], keys: Collection[str]
) -> Iterator[_Violation]:
    yield from (_reserved(key, "is not part of a pod template") for key in merged if key not in ("metadata", "spec"))
    yield from _of_metadata(base.get("metadata", {}), _mapping(merged.get("metadata"), "metadata"))
    ours, spec = base["spec"], _mapping(merged.get("spec"), "spec")
    yield from _of_spec(ours, spec)
    yield from _of_volumes(ours, spec)
    for field in ("initContainers", "containers"):
        before, after = _by_name(ours, field), _by_name(spec, field)
        yield from (
            _reserved(f"spec.{field}", f"lacks {name}, which the operator needs", "add it")
            for name in before
            if name not in after
        )
        for name, container in after.items():
            path = f"spec.{field}[{name}]"
            if name in before:
                yield from _of_our_container(before[name], container, path, leased=name in leased)
            else:
                yield from _of_new_container(ours, container, path)
            yield from _of_any_container(ours, before.get(name, {}), container, path)
    yield from (
        _reserved(path, f"reads the Secret {name}, which holds the worker's identity")
        for path, name in _secrets(spec, "spec")
        if name in keys
    )


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise OverlayError(f"template.{path}: must be an object")
    return value


def _sequence(value: Any, path: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise OverlayError(f"template.{path}: must be a list")
    return value or []


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Return the names of values that changed or were removed."""
    return (name for name, value in before.items() if after.get(name) != value)


def _of_metadata(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[_Violation]:
    yield from (
        _reserved(f"metadata.{name}", "cannot be set; labels and annotations can")
        for name in {*before, *after} - {"labels", "annotations"}
        if before.get(name) != after.get(name)
    )
    ours, labels = before.get("labels", {}), _mapping(after.get("labels", {}), "metadata.labels")
    for name in {*ours, *labels}:
        reserved = (name in ours and name not in CHANGEABLE) or str(name).startswith(_RESERVED_LABELS)
        if ours.get(name) != labels.get(name) and reserved:
            yield _reserved(f"metadata.labels[{name}]", "selects the policies that protect the pod")
    annotations = _mapping(after.get("annotations", {}), "metadata.annotations")
    yield from (
        _reserved(f"metadata.annotations[{name}]")
        for name in _changed(before.get("annotations", {}), annotations)
        if name not in CHANGEABLE
    )


def _of_spec(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[_Violation]:
    for field in before.keys() - _FREE - {"containers", "initContainers", "volumes"}:
        old, new, path = before[field], after.get(field), f"spec.{field}"
        if old == new:
            continue
        if field == "terminationGracePeriodSeconds":
            if not isinstance(new, int) or (isinstance(old, int) and new < old):
                minimum = f"must be at least {old} (jobs.terminationGraceSeconds + {STOP_S}), or results are lost"
                yield _reserved(path, minimum, "raise it")
        elif field == "restartPolicy":
            yield _reserved(path)
        elif field == "resourceClaims":
            claims = _by_name(after, field)
            yield from (_reserved(f"{path}[{name}]") for name in _changed(_by_name(before, field), claims))
        elif field == "securityContext":
            context = _mapping(new or {}, path)
            for name in {*(old or {}), *context} - _POD_CONTEXT:
                if (old or {}).get(name) != context.get(name):
                    yield _unsafe(f"{path}.{name}", "changes the confinement of the pod")
        else:
            yield _unsafe(path, "weakens the pod's isolation")


def _of_volumes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[_Violation]:
    ours, volumes = _by_name(before, "volumes"), _by_name(after, "volumes")
    yield from (_reserved(f"spec.volumes[{name}]") for name in _changed(ours, volumes))
    for name, volume in volumes.items():
        path = f"spec.volumes[{name}]"
        if name in ours:
            continue
        source = volume.get("emptyDir", None if volume.keys() - {"name"} else {})  # the default of the API server
        if source is not None and not _is_limit(_mapping(source, f"{path}.emptyDir").get("sizeLimit")):
            problem = "has no sizeLimit, so it escapes the lease's storage limit"
            yield _unsafe(f"{path}.emptyDir", problem, "set one")


def _of_our_container(
    before: Mapping[str, Any], after: Mapping[str, Any], path: str, *, leased: bool
) -> Iterator[_Violation]:
    for field in {*before, *after} - _CONTAINER_FREE:
        old, new = before.get(field), after.get(field)
        if old == new or (field == "resources" and not leased):
            continue
        if field == "securityContext":
            yield _unsafe(f"{path}.securityContext", "changes the confinement of the container")
        elif field not in _CONTAINER_ADDITIONS:
            yield _reserved(f"{path}.{field}")
        elif field == "resources":
            resources = _mapping(new, f"{path}.resources")
            for part in ("requests", "limits"):
                amounts = _mapping(resources.get(part, {}), f"{path}.resources.{part}")
                for name in _changed((old or {}).get(part, {}), amounts):
                    yield _reserved(f"{path}.resources.{part}.{name}", "comes from the lease")
            claims = _sequence(resources.get("claims"), f"{path}.resources.claims")
            if any(claim not in claims for claim in (old or {}).get("claims", [])):
                yield _reserved(f"{path}.resources.claims", "come from the lease")
        elif field in ("env", "volumeMounts"):
            key = _KEYS[field][0]
            items = {item[key]: item for item in _items(after, field)}
            yield from (_reserved(f"{path}.{field}[{item[key]}]") for item in old or [] if items.get(item[key]) != item)
        elif old is not None:
            yield _reserved(f"{path}.{field}")


def _of_new_container(ours: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[_Violation]:
    if after["securityContext"] != ours["containers"][0].get("securityContext", {}):
        yield _unsafe(f"{path}.securityContext", "changes the confinement of the container")


def _of_any_container(
    ours: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], path: str
) -> Iterator[_Violation]:
    if not _limits_memory(after, path) and (not before or _limits_memory(before, path)):
        problem = "is missing, so the container escapes the lease's memory limit"
        yield _unsafe(f"{path}.resources.limits.memory", problem, "set one")
    reserved = _by_name(ours, "volumes")
    for mount in _items(after, "volumeMounts"):
        if mount in _items(before, "volumeMounts"):
            continue
        if mount.get("name") in reserved:
            yield _reserved(
                f"{path}.volumeMounts[{mount['mountPath']}]", f"mounts {mount['name']}, which belongs to the operator"
            )


def _is_limit(quantity: Any) -> bool:
    """Whether a quantity limits anything. Kubernetes takes zero for no limit."""
    try:
        return parse_quantity(str(quantity)) > 0
    except ValueError:
        return False


def _limits_memory(container: Mapping[str, Any], path: str) -> bool:
    resources = _mapping(container.get("resources") or {}, f"{path}.resources")
    return _is_limit(_mapping(resources.get("limits") or {}, f"{path}.resources.limits").get("memory"))


def _secrets(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            here = f"{path}.{name}"
            if name == "secretName":
                yield here, str(item)
            elif "secret" in str(name).lower() and isinstance(item, Mapping) and "name" in item:
                yield here, str(item["name"])
            yield from _secrets(item, here)
    elif isinstance(value, list):
        for item in value:
            yield from _secrets(item, path)
