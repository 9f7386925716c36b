"""The fields of a pod template that are known to be harmless, with their types. Everything else needs the opt-in.

A list of what harms would be incomplete: every version of Kubernetes and every add-on of a cluster brings new fields,
kinds of volumes and annotations.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from hypha_operator.pods.addons import CHANGEABLE

Shape: TypeAlias = "Callable[[Any], bool] | Mapping[str, Shape] | list[Shape]"
"""What a value may be: a predicate, an object with these fields, or a list of such items."""
_Object: TypeAlias = "dict[str, Shape]"

_QUANTITY: Final = re.compile(r"[0-9.]+[A-Za-z]{0,2}")
_KEY_PREFIXES: Final = (
    *("cluster-autoscaler.kubernetes.io/", "karpenter.sh/", "kueue.x-k8s.io/", "prometheus.io/"),
    "kubectl.kubernetes.io/default-",
)
"""Labels and annotations of add-ons that schedule, bill and watch pods."""
_OWN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_IDENTITY_KEYS: Final = frozenset({"aadpodidbinding"})


def text(value: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def integer(value: Any) -> bool:
    """Whether a value is an integer from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def flag(value: Any) -> bool:
    """Whether a value is a boolean."""
    return isinstance(value, bool)


def _group(value: Any) -> bool:
    return integer(value) and value > 0


def _quantity(value: Any) -> bool:
    amount = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    return amount or (text(value) and bool(_QUANTITY.fullmatch(value)))


def _port(value: Any) -> bool:
    return integer(value) or text(value)


def _priority_class(value: Any) -> bool:
    return text(value) and not value.startswith("system-")


def _object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _texts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(text, value.values()))


def _quantities(value: Any) -> bool:
    return isinstance(value, Mapping) and all(item is None or _quantity(item) for item in value.values())


def _one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: any(value is item or (text(value) and value == item) for item in allowed)


_NAMED: Final[_Object] = {"name": text, "optional": flag}
_ITEMS: Final[list[Shape]] = [{"key": text, "path": text, "mode": integer}]
_FIELD: Final[_Object] = {"apiVersion": text, "fieldPath": text}
_RESOURCE_FIELD: Final[_Object] = {"containerName": text, "resource": text, "divisor": _quantity}
_DOWNWARD: Final[_Object] = {"path": text, "fieldRef": _FIELD, "resourceFieldRef": _RESOURCE_FIELD, "mode": integer}
_CLAIM: Final[_Object] = {
    "accessModes": [text],
    "resources": {"requests": _quantities, "limits": _quantities},
    "storageClassName": text,
    "volumeMode": _one_of("Filesystem"),
}
_PROJECTION: Final[_Object] = {
    "secret": {**_NAMED, "items": _ITEMS},
    "configMap": {**_NAMED, "items": _ITEMS},
    "downwardAPI": {"items": [_DOWNWARD]},
    "clusterTrustBundle": {**_NAMED, "signerName": text, "labelSelector": _object, "path": text},
}
_VOLUME: Final[_Object] = {
    "name": text,
    "configMap": {**_NAMED, "items": _ITEMS, "defaultMode": integer},
    "secret": {"secretName": text, "items": _ITEMS, "defaultMode": integer, "optional": flag},
    "downwardAPI": {"items": [_DOWNWARD], "defaultMode": integer},
    "emptyDir": {"medium": _one_of("", "Memory"), "sizeLimit": _quantity},
    "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": _texts}, "spec": _CLAIM}},
    "image": {"reference": text, "pullPolicy": text},
    "persistentVolumeClaim": {"claimName": text, "readOnly": flag},
    "projected": {"sources": [_PROJECTION], "defaultMode": integer},
}
_HANDLER: Final[_Object] = {
    "exec": {"command": [text]},
    "httpGet": {"path": text, "port": _port, "scheme": text, "httpHeaders": [{"name": text, "value": text}]},
    "tcpSocket": {"port": _port},
    "grpc": {"port": integer, "service": text},
    "sleep": {"seconds": integer},
}
_TIMES: Final = (
    *("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold"),
    "terminationGracePeriodSeconds",
)
_PROBE: Final[_Object] = {**_HANDLER, **dict.fromkeys(_TIMES, integer)}
_KEY: Final[_Object] = {**_NAMED, "key": text}
_ENV: Final[_Object] = {
    "name": text,
    "value": text,
    "valueFrom": {
        "configMapKeyRef": _KEY,
        "secretKeyRef": _KEY,
        "fieldRef": _FIELD,
        "resourceFieldRef": _RESOURCE_FIELD,
    },
}
_CONTAINER: Final[_Object] = {
    **dict.fromkeys(("name", "image", "imagePullPolicy", "workingDir", "restartPolicy"), text),
    **dict.fromkeys(("terminationMessagePath", "terminationMessagePolicy"), text),
    **dict.fromkeys(("startupProbe", "livenessProbe", "readinessProbe"), _PROBE),
    "command": [text],
    "args": [text],
    "env": [_ENV],
    "envFrom": [{"prefix": text, "configMapRef": _NAMED, "secretRef": _NAMED}],
    "volumeMounts": [
        {
            **dict.fromkeys(("name", "mountPath", "subPath", "recursiveReadOnly"), text),
            "readOnly": flag,
            "mountPropagation": _one_of("None"),
        }
    ],
    "ports": [{"name": text, "containerPort": integer, "protocol": text}],
    "resources": {"limits": _quantities, "requests": _quantities, "claims": [{"name": text, "request": text}]},
    "lifecycle": {"postStart": _HANDLER, "preStop": _HANDLER},
    "securityContext": _object,  # compared with the operator's
}
_POD_CONTEXT: Final[_Object] = {
    **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), _group),
    **dict.fromkeys(("fsGroupChangePolicy", "supplementalGroupsPolicy"), text),
    "supplementalGroups": [_group],
    "runAsNonRoot": flag,
    "seccompProfile": _object,  # compared with the operator's
}
_SPEC: Final[_Object] = {
    **dict.fromkeys(("schedulerName", "preemptionPolicy", "runtimeClassName", "restartPolicy"), text),
    **dict.fromkeys(("dnsPolicy", "hostname", "subdomain"), text),
    "nodeSelector": _texts,
    "containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
    "schedulingGates": [{"name": text}],
    "imagePullSecrets": [{"name": text}],
    "priorityClassName": _priority_class,
    "affinity": _object,
    "topologySpreadConstraints": [_object],
    "tolerations": [{**dict.fromkeys(("key", "operator", "value", "effect"), text), "tolerationSeconds": integer}],
    "readinessGates": [{"conditionType": text}],
    "overhead": _quantities,
    "dnsConfig": {"nameservers": [text], "searches": [text], "options": [{"name": text, "value": text}]},
    "setHostnameAsFQDN": flag,
    "hostAliases": [{"ip": text, "hostnames": [text]}],
    "hostUsers": _one_of(False),
    "terminationGracePeriodSeconds": integer,
    "resourceClaims": [dict.fromkeys(("name", "resourceClaimName", "resourceClaimTemplateName"), text)],
    "securityContext": _POD_CONTEXT,
    "volumes": [_VOLUME],
}
_TEMPLATE: Final[Shape] = {"metadata": {"labels": _texts, "annotations": _texts}, "spec": _SPEC}


def unknown_parts(template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield path and problem of each part of a template that is not known to be harmless. Null removes, so it is."""
    yield from _unknown(_without_nulls(template), _TEMPLATE, "")
    metadata = template.get("metadata") if isinstance(template.get("metadata"), Mapping) else {}
    for field in ("labels", "annotations"):
        keys = (metadata or {}).get(field)
        for key in keys if isinstance(keys, Mapping) else ():
            if _is_of_an_add_on(str(key)):
                yield (
                    f"metadata.{field}[{key}]",
                    "may have a meaning for an add-on of the cluster",
                )


def _is_of_an_add_on(key: str) -> bool:
    """Whether an add-on or a container runtime may read this key. By convention, theirs have a domain in them."""
    harmless = _OWN_KEY.fullmatch(key) or key.startswith(_KEY_PREFIXES) or key in CHANGEABLE
    return key in _IDENTITY_KEYS or not harmless


def _unknown(value: Any, shape: Shape, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(shape, Mapping) and isinstance(value, Mapping):
        for name, item in value.items():
            here = f"{path}.{name}" if path else str(name)
            if name in shape:
                yield from _unknown(item, shape[name], here)
            else:
                yield here, "is not known to be harmless"
    elif isinstance(shape, list) and isinstance(value, list):
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, Mapping) else index
            yield from _unknown(item, shape[0], f"{path}[{name}]")
    elif not (callable(shape) and shape(value)):
        yield path, "has a value or type that is not known to be harmless"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
