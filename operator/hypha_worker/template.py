"""The configuration that `hypha-worker init` writes: every key with its meaning and default, made from the models."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hypha_contracts.node_config import NodeConfig

_HEADER: Final = """\
# Configuration of a Hypha worker. A key behind a single # has the value that it has without being set.
# Relative paths start at this file's directory. In the environment HYPHA_<KEY> replaces a key, HYPHA_<TABLE>__<KEY> one
# in a table.
"""
_LEFT_OUT: Final = ("executors", "kubernetes")
"""What `render` writes itself, and what an operator writes."""
_EXECUTORS: Final = """\
# What this worker can run; schedulers ask for an executor by class and name. Placeholders in args:
# {SOCKET_PATH} of the job bridge, {WORK_DIR} of the job, {JOB_FILE} (or {JOB_JSON}) with its specification.
[[executors]]
class = "train"
name = "diloco-transformer"
runtime = "process"
cmd = "accelerate"
args = [
    "launch", "--module", "hypha_trainer",
    "--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}", "--job-file", "{JOB_FILE}",
]

[[executors]]
class = "aggregate"
name = "parameter-server"
runtime = "parameter-server"
"""


def render(name: str, values: Mapping[str, Any]) -> str:
    """Return the file's text for a worker of this name; `values` are set instead of defaults."""
    placeholders = {
        "cert_pem": f"{name}-cert.pem",
        "key_pem": f"{name}-key.pem",
        "trust_pem": f"{name}-trust.pem",
        "gateway_addresses": ["/ip4/203.0.113.50/tcp/4001"],
        "work_dir": f"{name}-work",
    }
    fields = NodeConfig.model_fields
    top = {key: field for key, field in fields.items() if key not in _tables() and key not in _LEFT_OUT}
    lines = [_HEADER, *_entries(top, placeholders | dict(values))]
    examples = {"resources": {"cpu": 4, "memory": 16, "storage": 100, "gpu": 0}}
    for table, model in _tables().items():
        lines += [f"[{table}]", *_entries(model.model_fields, examples.get(table, {}))]
    return "\n".join([*lines, _EXECUTORS])


def _tables() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in NodeConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _entries(fields: Mapping[str, FieldInfo], values: Mapping[str, Any]) -> Iterator[str]:
    for key, field in fields.items():
        if field.description:
            yield f"# {field.description}"
        if key in values:
            yield f"{key} = {_toml(values[key])}"
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
            yield f"#{key} =" + (f" {_toml(default)}" if default is not None else "")
        yield ""


def _toml(value: Any) -> str:
    """Write a value as TOML, which for these types is JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(str(value) if isinstance(value, Path) else value)
