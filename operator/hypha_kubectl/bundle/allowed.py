"""The fields of each kind of object that a bundle may hold. Every other field is left out. Pure."""

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, TypeAlias

from hypha_contracts.kinds import Manifest
from hypha_contracts.units import QUANTITY_PATTERN
from hypha_kubectl.bundle.scrub import scrub


class Keep(Enum):
    """What is kept of a field."""

    VALUE = "a text, number or truth, or a list of these; texts are scrubbed"
    NUMBERS = "names with numbers or quantities"
    NAMES = "the names, but no values"
    COUNT = "how many there are"


Shape: TypeAlias = "Keep | Mapping[str, Shape] | list[Shape]"
"""What is kept of a value. A list has one shape for all of its items."""

_V, _N = Keep.VALUE, Keep.NUMBERS
_CONDITIONS: Final[Shape] = [
    dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime", "observedGeneration"), _V)
]
_OUR_LABELS: Final = re.compile(
    r"hypha\.space/[\w.-]+|app\.kubernetes\.io/[\w.-]+|helm\.sh/chart|kueue\.x-k8s\.io/queue-name"
    r"|kubernetes\.io/(arch|os|hostname)|node\.kubernetes\.io/instance-type|topology\.kubernetes\.io/(zone|region)"
    r"|nvidia\.com/(gpu\.(product|memory|count)|cuda\.driver\.(major|minor|rev))"
)
_METADATA: Final[Shape] = {
    **dict.fromkeys(("name", "namespace", "uid", "generation", "creationTimestamp", "deletionTimestamp"), _V),
    "finalizers": _V,
    "ownerReferences": [{"kind": _V, "name": _V}],
}
_RESOURCES: Final[Shape] = {"requests": _N, "limits": _N}
_CONTAINER: Final[Shape] = {
    "name": _V,
    "image": _V,
    "command": Keep.COUNT,
    "args": Keep.COUNT,
    "env": Keep.NAMES,
    "resources": _RESOURCES,
}
_RUN_STATE: Final[Shape] = {
    "waiting": {"reason": _V, "message": _V},
    "running": {"startedAt": _V},
    "terminated": dict.fromkeys(("exitCode", "signal", "reason", "message", "startedAt", "finishedAt"), _V),
}
_CONTAINER_STATUS: Final[Shape] = [
    {
        **dict.fromkeys(("name", "image", "ready", "started", "restartCount"), _V),
        "state": _RUN_STATE,
        "lastState": _RUN_STATE,
    }
]
_POD_SPEC: Final[Shape] = {
    **dict.fromkeys(("nodeName", "serviceAccountName", "priorityClassName", "runtimeClassName", "restartPolicy"), _V),
    "containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
    "volumes": Keep.NAMES,
}
_AMOUNTS: Final[Shape] = _N
_EXECUTOR_REF: Final[Shape] = {"class": _V, "name": _V}

WORKER_FIELDS: Final[Shape] = {
    "spec": {
        "identity": {
            **dict.fromkeys(("secretName", "trustSecretName", "allowPeerIdChange"), _V),
            "issuerRef": {"name": _V, "kind": _V, "group": _V},
        },
        "network": {
            **dict.fromkeys(("gateways", "listenAddresses", "externalAddresses", "excludeCidr", "relayCircuit"), _V),
            "expose": dict.fromkeys(("type", "port", "hosts", "ipFamilyPolicy", "externalTrafficPolicy"), _V),
        },
        "resources": {
            **dict.fromkeys(("cpu", "memory", "storage"), _V),
            "gpu": dict.fromkeys(("resourceName", "deviceClassName", "count", "memory"), _V),
            "perJob": _N,
            "nodes": [_N],
        },
        "offer": {"strategy": _V, "price": _V, "floor": _V, "minimum": _N},
        "selection": {"strategy": _V, "schedulers": Keep.COUNT, "executors": Keep.COUNT},
        "schedulers": {"allow": Keep.COUNT, "block": Keep.COUNT, "maxShare": _V},
        "leases": _N,
        "jobs": {
            **dict.fromkeys(("allowPrivateAddresses", "disruption", "hubEndpoint", "readAhead", "outputClaim"), _V),
            **dict.fromkeys(("startPatienceSeconds", "startTimeoutSeconds", "queueTimeoutSeconds"), _V),
            **dict.fromkeys(("maxDurationSeconds", "terminationGraceSeconds", "ttlSecondsAfterFinished"), _V),
            "storage": {"storageClassName": _V},
            "egress": Keep.COUNT,
            "bridgeResources": _RESOURCES,
        },
        "executors": [
            {
                **dict.fromkeys(("class", "name", "image", "queueName", "runtimeClassName", "trustRemoteCode"), _V),
                "command": Keep.COUNT,
                "args": Keep.COUNT,
                "env": Keep.NAMES,
                "template": Keep.NAMES,
            }
        ],
        "telemetry": {"endpoint": _V, "protocol": _V, "sampler": _V, "sampleRatio": _V},
        "controller": {"image": _V, "resources": _RESOURCES, "template": Keep.NAMES},
        "suspend": _V,
        "suspendDeadline": _V,
    },
    "status": {
        "observedGeneration": _V,
        "conditions": _CONDITIONS,
        "peerId": _V,
        "capacity": _AMOUNTS,
        "externalAddresses": _V,
        "offering": {"enabled": _V, "provenAt": _V, "limit": _AMOUNTS, "perJob": _AMOUNTS},
        "node": {
            **dict.fromkeys(("peerId", "gateways", "connectedGateways", "listening", "circuits", "healthy"), _V),
            **dict.fromkeys(("certificateExpires", "problem", "activeLeases", "activeJobs", "podName"), _V),
            "allocated": _AMOUNTS,
            "leases": [{"id": _V, "scheduler": _V, "resources": _AMOUNTS, "price": _V, "accepted": _V}],
            "accounts": [dict.fromkeys(("scheduler", "leases", "leasedSeconds", "earned"), _V)],
            "requests": {"considered": _V, "refused": _V, "lastRefusal": {"reason": _V, "message": _V}},
        },
    },
}
JOB_FIELDS: Final[Shape] = {
    "spec": {
        "workerRef": {"name": _V, "uid": _V},
        **dict.fromkeys(("workerPeerId", "taskId", "jobId", "scheduler", "controller", "ttlSecondsAfterFinished"), _V),
        "lease": {"id": _V, "deadline": _V, "price": _V, "accepted": _V},
        "executor": _EXECUTOR_REF,
        "resources": _AMOUNTS,
        "cancel": {"reason": _V},
    },
    "status": {
        **dict.fromkeys(("phase", "reason", "podName", "podUid", "nodeName", "startingSince", "startTime"), _V),
        **dict.fromkeys(("completionTime", "duration"), _V),
        "conditions": _CONDITIONS,
        "lastLines": Keep.COUNT,
        "progress": {
            **dict.fromkeys(("round", "batches", "samples", "samplesPerSecond", "roundsPerHour"), _V),
            **dict.fromkeys(("totalBatches", "estimatedEnd"), _V),
            "metrics": _N,
        },
        "stages": [{"name": _V, "startTime": _V, "endTime": _V}],
    },
}
POD_FIELDS: Final[Shape] = {
    "spec": _POD_SPEC,
    "status": {
        **dict.fromkeys(("phase", "reason", "message", "startTime", "qosClass"), _V),
        "conditions": _CONDITIONS,
        "initContainerStatuses": _CONTAINER_STATUS,
        "containerStatuses": _CONTAINER_STATUS,
    },
}
DEPLOYMENT_FIELDS: Final[Shape] = {
    "spec": {"replicas": _V, "template": {"spec": _POD_SPEC}},
    "status": {
        **dict.fromkeys(("observedGeneration", "replicas", "readyReplicas", "updatedReplicas"), _V),
        "conditions": _CONDITIONS,
    },
}
NODE_FIELDS: Final[Shape] = {
    "spec": {"unschedulable": _V, "taints": [{"key": _V, "effect": _V}]},
    "status": {
        "capacity": _N,
        "allocatable": _N,
        "conditions": _CONDITIONS,
        "nodeInfo": dict.fromkeys(
            ("kubeletVersion", "containerRuntimeVersion", "osImage", "kernelVersion", "architecture"), _V
        ),
    },
}
LEASE_FIELDS: Final[Shape] = {
    "spec": dict.fromkeys(("holderIdentity", "leaseDurationSeconds", "acquireTime", "renewTime"), _V)
}
EVENT_FIELDS: Final[Shape] = {
    **dict.fromkeys(("type", "reason", "message", "count", "firstTimestamp", "lastTimestamp", "eventTime"), _V),
    **dict.fromkeys(("reportingComponent",), _V),
    "involvedObject": {"kind": _V, "name": _V, "namespace": _V},
}


def kept(manifest: Manifest, fields: Shape) -> Manifest:
    """Return the allowed fields of an object, with those of its metadata and labels that every object may keep."""
    labels = manifest["metadata"].get("labels") or {}
    found: Manifest = {
        "metadata": {
            **_kept(manifest["metadata"], _METADATA),
            "labels": {key: scrub(str(value)) for key, value in labels.items() if _OUR_LABELS.fullmatch(key)},
        }
    }
    return found | dict(_kept(manifest, fields))


def _kept(value: Any, shape: Shape) -> Any:
    if isinstance(shape, Mapping):
        known = value if isinstance(value, Mapping) else {}
        return {key: _kept(known[key], of) for key, of in shape.items() if known.get(key) is not None}
    if isinstance(shape, list):
        return [_kept(item, shape[0]) for item in value] if isinstance(value, list) else []
    if shape is Keep.VALUE:
        return _value(value)
    if shape is Keep.NUMBERS:
        known = value if isinstance(value, Mapping) else {}
        return {scrub(str(key)): number for key, number in known.items() if _is_number(number)}
    if shape is Keep.NAMES:
        return _names(value)
    return len(value) if isinstance(value, list | Mapping) else 0


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_value(item) for item in value if isinstance(item, str | int | float)]
    return value if isinstance(value, int | float) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and bool(re.fullmatch(QUANTITY_PATTERN, value)))


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [scrub(str(key)) for key in value]
    items = value if isinstance(value, list) else []
    return [scrub(str(item["name"])) for item in items if isinstance(item, Mapping) and "name" in item]
