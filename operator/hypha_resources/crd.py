"""Makes CustomResourceDefinitions from the models: converts pydantic's JSON schemas to structural schemas.

The definitions have no defaults, because a default that the API server writes into an item of a list is drift for tools
that compare with Git. The models fill in the defaults when they are read, and the descriptions name them.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from hypha_contracts.names import GROUP, JOB_KIND, VERSION, WORKER_KIND
from hypha_resources.common import rules
from hypha_resources.job import HyphaJobSpec, HyphaJobStatus
from hypha_resources.worker import HyphaWorkerSpec
from hypha_resources.worker_status import HyphaWorkerStatus

Schema = dict[str, Any]

_MAX_LENGTH: Final = 4096
_MAX_ITEMS: Final = 256
_MAX_PROPERTIES: Final = 256
"""Limits where the models have none, because the API server accepts rules only if it can estimate their cost."""


class Resource(NamedTuple):
    """The parts of a CustomResourceDefinition. `selectable` are the fields for `kubectl get --field-selector`."""

    kind: str
    short_name: str
    description: str
    spec: type[BaseModel]
    status: type[BaseModel]
    rules: tuple[tuple[str, str], ...]
    columns: tuple[Schema, ...]
    selectable: tuple[str, ...]

    @property
    def plural(self) -> str:
        """The name in URLs."""
        return f"{self.kind.lower()}s"


def _column(name: str, type_: str, path: str, *, wide: bool = False) -> Schema:
    """Return a column of `kubectl get`; a wide one shows only with `-o wide`."""
    column = {"name": name, "type": type_, "jsonPath": path}
    return column | {"priority": 1} if wide else column


def _of_condition(type_: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


HYPHA_WORKER: Final = Resource(
    kind=WORKER_KIND,
    short_name="hw",
    description="A worker node of a Hypha network whose jobs are pods of this namespace.",
    spec=HyphaWorkerSpec,
    status=HyphaWorkerStatus,
    rules=(
        (
            "self.metadata.name.size() <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            (
                "metadata.name: at most 48 characters, a letter first, then letters, digits and hyphens: "
                "Services and labels are named after it"
            ),
        ),
    ),
    columns=(
        _column("Ready", "string", _of_condition("Ready", "status")),
        _column("Peer", "string", ".status.peerId"),
        _column("Gateways", "integer", ".status.node.connectedGateways"),
        _column("Leases", "integer", ".status.node.activeLeases"),
        _column("Jobs", "integer", ".status.node.activeJobs"),
        _column("Reach", "string", ".status.node.reach", wide=True),
        _column("Reason", "string", _of_condition("Ready", "reason"), wide=True),
        _column("Message", "string", _of_condition("Ready", "message"), wide=True),
        _column("Age", "date", ".metadata.creationTimestamp"),
    ),
    selectable=(),
)
HYPHA_JOB: Final = Resource(
    kind=JOB_KIND,
    short_name="hj",
    description="A task that a HyphaWorker runs under a lease. The worker creates it; people need not.",
    spec=HyphaJobSpec,
    status=HyphaJobStatus,
    rules=(("self.metadata.name == 'hypha-' + self.spec.taskId", "metadata.name: must be hypha-<spec.taskId>"),),
    columns=(
        _column("Worker", "string", ".spec.workerRef.name"),
        _column("Executor", "string", ".spec.executor.name"),
        _column("Phase", "string", ".status.phase"),
        _column("Round", "integer", ".status.progress.round"),
        _column("Loss", "number", ".status.progress.metrics.loss"),
        _column("Samples/s", "number", ".status.progress.samplesPerSecond"),
        _column("Rounds/h", "number", ".status.progress.roundsPerHour"),
        _column("Duration", "string", ".status.duration"),
        _column("Batches", "integer", ".status.progress.batches", wide=True),
        _column("Total", "integer", ".status.progress.totalBatches", wide=True),
        _column("Estimated End", "string", ".status.progress.estimatedEnd", wide=True),
        _column("Reason", "string", ".status.reason", wide=True),
        _column("Message", "string", _of_condition("Ready", "message"), wide=True),
        _column("GPU GB", "number", ".spec.resources.gpu", wide=True),
        _column("Scheduler", "string", ".spec.scheduler", wide=True),
        _column("Node", "string", ".status.nodeName", wide=True),
        _column("Age", "date", ".metadata.creationTimestamp"),
    ),
    selectable=(".spec.workerRef.name", ".status.phase"),
)
RESOURCES: Final = (HYPHA_WORKER, HYPHA_JOB)


def definition(resource: Resource) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a resource."""
    root = {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(resource.spec, for_users=True),
            "status": structural(resource.status, for_users=False),
        },
        **rules(*resource.rules),
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": ["hypha"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": list(resource.columns),
                    **(
                        {"selectableFields": [{"jsonPath": path} for path in resource.selectable]}
                        if resource.selectable
                        else {}
                    ),
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def structural(model: type[BaseModel], *, for_users: bool) -> Schema:
    """Return the structural schema of a model.

    Args:
        model: the model to describe, with the aliases of its fields.
        for_users: describe the defaults, and limit the size of everything that has no limit.
    """
    schema = model.model_json_schema(by_alias=True)
    return _converted(schema, schema.get("$defs", {}), for_users)


def _converted(schema: Schema, definitions: Mapping[str, Schema], for_users: bool) -> Schema:
    schema = _without_null(_inlined(schema, definitions))
    default = schema.pop("default", None)
    rules = schema.pop("x-kubernetes-validations", None)
    if schema.pop("x-kubernetes-int-or-string", False):
        schema = _int_or_string(schema)
    elif schema.get("type") == "object":
        schema = _object(schema, definitions, for_users)
    elif schema.get("type") == "array":
        schema["items"] = _converted(schema["items"], definitions, for_users)
    schema = _with_open_interval(schema)
    if for_users:
        schema = _bounded(_with_default_described(schema, default))
    return schema | {"x-kubernetes-validations": rules} if rules else schema


def _inlined(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Replace a reference and let its neighbouring keys take precedence. Drop titles and definitions."""
    if reference := schema.get("$ref"):
        target = definitions[reference.removeprefix("#/$defs/")]
        schema = target | {key: value for key, value in schema.items() if key != "$ref"}
        return _inlined(schema, definitions)
    kept = {key: value for key, value in schema.items() if key not in ("title", "$defs")}
    if "anyOf" in kept:
        kept["anyOf"] = [_inlined(option, definitions) for option in kept["anyOf"]]
    return kept


def _without_null(schema: Schema) -> Schema:
    """Make `X or null` plain X, because optional fields are left out and never null."""
    options = schema.pop("anyOf", None)
    if options is None:
        return schema
    (option,) = (option for option in options if option != {"type": "null"})
    return {**option, **{key: value for key, value in schema.items() if key != "default" or value is not None}}


def _with_default_described(schema: Schema, default: Any) -> Schema:
    description = schema.get("description", "")
    if default not in (None, [], {}, "") and not isinstance(default, dict) and "efault" not in description:
        text = json.dumps(default).strip('"[]').removesuffix(".0")
        schema["description"] = f"{description} Default: {text}.".lstrip()
    return schema


def _int_or_string(schema: Schema) -> Schema:
    del schema["type"]
    schema.setdefault("maxLength", 64)
    return schema | {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": True}


def _object(schema: Schema, definitions: Mapping[str, Schema], for_users: bool) -> Schema:
    if "properties" in schema:
        properties = schema["properties"].items()
        schema["properties"] = {name: _converted(part, definitions, for_users) for name, part in properties}
    values = schema.pop("additionalProperties", None)
    if isinstance(values, dict):
        schema["additionalProperties"] = _converted(values, definitions, for_users)
    return schema


def _with_open_interval(schema: Schema) -> Schema:
    """Write exclusive bounds in the form of OpenAPI 3.0, and a constant as an enumeration."""
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if (value := schema.pop(exclusive, None)) is not None:
            schema |= {bound: value, exclusive: True}
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    return schema


def _bounded(schema: Schema) -> Schema:
    if schema.get("type") == "string" and not schema.keys() & {"enum", "format"}:
        schema.setdefault("maxLength", _MAX_LENGTH)
    if schema.get("type") == "array":
        schema.setdefault("maxItems", _MAX_ITEMS)
    if "additionalProperties" in schema:
        schema.setdefault("maxProperties", _MAX_PROPERTIES)
    return schema
