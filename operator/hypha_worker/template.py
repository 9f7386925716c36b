"""The configuration that `hypha-worker init` writes. Keys, meanings and defaults come from the models."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hypha_contracts.node_config import NodeConfig
from hypha_worker.config_file import tables

_HEADER: Final = """\
# Configuration of a Hypha worker. Lines such as "#key = value" show the defaults.
# Relative paths start at this file's directory. The environment variable HYPHA_<KEY> overrides a key, and
# HYPHA_<TABLE>__<KEY> overrides a key of a table.
"""
_LEFT_OUT: Final = ("executors", "kubernetes")
"""`_EXECUTORS` has the first, and the operator writes the second."""
_EXECUTORS: Final = """\
# The programs that this worker can run. Schedulers ask for an executor by class and name. Placeholders in args:
# {SOCKET_PATH} of the job's bridge, {WORK_DIR} of the job, {JOB_FILE} (or {JOB_JSON}) with its specification.
[[executors]]
class = "train"
name = "diloco-transformer"
runtime = "process"
cmd = "python"
args = [
    "-m", "hypha_executor.restart", "-m", "hypha_trainer.launch", "-m", "hypha_trainer",
    "--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}", "--job-file", "{JOB_FILE}",
]

[[executors]]
class = "inference"
name = "transformers"
runtime = "process"
cmd = "python"
args = [
    "-m", "hypha_trainer.inference",
    "--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}", "--job-file", "{JOB_FILE}",
]

[[executors]]
class = "aggregate"
name = "parameter-server"
runtime = "parameter-server"
"""


def render(name: str, values: Mapping[str, Any], python: str = sys.executable) -> str:
    """Return the text of the file for a worker of this name. `values` are set, and other keys show their defaults.

    `python` is the interpreter that runs executors. It need not be in PATH.
    """
    placeholders = {
        "cert_pem": f"{name}-cert.pem",
        "key_pem": f"{name}-key.pem",
        "trust_pem": f"{name}-trust.pem",
        "gateway_addresses": ["/ip4/203.0.113.50/tcp/4001"],
        "work_dir": f"{name}-work",
    }
    top = {key: field for key, field in NodeConfig.model_fields.items() if key not in tables()}
    lines = [_HEADER, *_entries(top, placeholders | dict(values))]
    examples = {"resources": {"cpu": 4, "memory": 16, "storage": 100, "gpu": 0}}
    for table, model in tables().items():
        if table not in _LEFT_OUT:
            lines += [f"[{table}]", *_entries(model.model_fields, examples.get(table, {}))]
    return "\n".join([*lines, _EXECUTORS.replace('"python"', _toml(python))])


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
    """Write a value as TOML, which for text, numbers and lists is JSON without surrogate pairs."""
    if isinstance(value, BaseModel):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value) + " }"
    return json.dumps(value, default=str, ensure_ascii=False)
