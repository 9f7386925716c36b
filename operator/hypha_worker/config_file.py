"""Reads the configuration from a TOML file. The environment overrides the file, and the command line overrides both."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import rtoml
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from hypha_contracts.node_config import NodeConfig
from hypha_network.wire.dnsaddr import parse_gateway
from hypha_worker.errors import NodeError

_MAX_FILE_BYTES: Final = 32 * 1024
"""The parser and the report of all unknown keys take less than 20 ms for a file of this size."""
_PREFIX: Final = "HYPHA_"


class ConfigError(NodeError):
    """The configuration cannot be used. The message is one line with the place, the key and what to do."""


@dataclass(frozen=True)
class Loaded:
    """A configuration and the warnings about it."""

    config: NodeConfig
    warnings: tuple[str, ...]


def load(path: Path, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read a configuration.

    Args:
        path: the TOML file. Relative paths in it start at its directory.
        environ: variables `HYPHA_<KEY>` and `HYPHA_<TABLE>__<KEY>`, which override the file.
        overrides: values by key, which override both.

    Raises:
        ConfigError: the file cannot be read or a value is invalid.
    """
    text, values = read(path)
    warnings = [f"{path}: {warning}" for warning in _hoist(values)]
    sources: dict[str, str] = {}
    for key, (variable, value) in _from_environment(environ).items():
        _set(values, key, value)
        sources[key[0]] = variable
    for name, value in (overrides or {}).items():
        _set(values, (name,), value)
        sources[name] = f"--{name.replace('_', '-')}"
    try:
        context = {
            "directory": path.absolute().parent,
            "is_supported": lambda address: parse_gateway(address) is not None,
        }
        config = NodeConfig.model_validate(values, context=context)
    except ValidationError as error:
        raise ConfigError(_describe(error, path, text, sources)) from error
    return Loaded(config, tuple(warnings))


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text and the values of a TOML file; ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {_MAX_FILE_BYTES} bytes. Check that this is the configuration.")
        text = data.decode()
        return text, rtoml.loads(text)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file. Name another with --config, or write a worker's with `hypha-worker init`."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}. Check the path and its permissions.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def _hoist(values: dict[str, Any]) -> list[str]:
    """Move top-level keys that stand below a table header, and so are part of that table, to the top level.

    The example of the worker guide has `work_dir` below `[resources]` and `telemetry_endpoint` below `[[executors]]`.

    Returns:
        A warning for each of them.
    """
    top, known = _keys(NodeConfig), {name: _keys(table) for name, table in tables().items()}
    present = {name: values[name] for name in known if isinstance(values.get(name), dict)}
    executors = values.get("executors")
    if isinstance(executors, list):
        present |= {f"executors[{i}]": table for i, table in enumerate(executors) if isinstance(table, dict)}
    warnings = []
    for table_name, table in present.items():
        own = known[table_name.partition("[")[0]]
        for key in [key for key in table if key in top and key not in own and key not in values]:
            values[key] = table.pop(key)
            warnings.append(
                f"{key} is below [{table_name}], which makes it a key of that table in TOML. "
                "It is read as a top-level key. Move it above the first table."
            )
    return warnings


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, ...], tuple[str, Any]]:
    """Return the variable and the value of each key that the environment sets. Ignores other variables."""
    found: dict[tuple[str, ...], tuple[str, Any]] = {}
    for variable, text in environ.items():
        if variable.startswith(_PREFIX) and text:
            key = tuple(re.split(r"__|\.", variable.removeprefix(_PREFIX).lower(), maxsplit=1))
            table = tables().get(key[0]) if len(key) > 1 else NodeConfig
            if table is not None and key[-1] in _keys(table):
                found[key] = (variable, parse_value(text))
    return found


def parse_value(text: str) -> Any:
    """Parse a TOML value. A list may also hold words without quotes, and any other text is a string."""
    try:
        return rtoml.loads(f"value = {text}")["value"]
    except ValueError:
        if text.startswith("[") and text.endswith("]"):
            return [item.strip().strip("\"'") for item in text[1:-1].split(",") if item.strip()]
        return text


def _set(values: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    if len(key) == 1:
        field = NodeConfig.model_fields.get(key[0])
        for alias in _aliases(key[0], field) if field else ():
            values.pop(alias, None)
        values[key[0]] = value
    elif isinstance(table := values.setdefault(key[0], {}), dict):
        table[key[1]] = value


def tables() -> dict[str, type[BaseModel]]:
    """Return the tables of the configuration and their models."""
    return {
        name: candidate
        for name, field in NodeConfig.model_fields.items()
        for candidate in (field.annotation, *get_args(field.annotation))
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    }


def _keys(model: type[BaseModel]) -> set[str]:
    return {alias for name, field in model.model_fields.items() for alias in _aliases(name, field)}


def _aliases(name: str, field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return list(map(str, alias.choices)) if isinstance(alias, AliasChoices) else [str(alias or name)]


def _describe(error: ValidationError, path: Path, text: str, sources: Mapping[str, str]) -> str:
    """Describe the first error in one line, and count the others."""
    details = error.errors(include_url=False, include_input=False)
    first = min(details, key=lambda detail: detail["type"] != "extra_forbidden")  # it explains a missing one
    location = tuple(part for part in first["loc"] if not (isinstance(part, str) and part.endswith("()")))
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    message = str(first["msg"]).removeprefix("Value error, ")
    model = tables().get(str(location[0]), NodeConfig) if len(location) > 1 else NodeConfig
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _keys(model), n=1)
        message = f"unknown key. {f'Did you mean {close[0]}?' if close else 'Remove it or see `hypha-worker init`.'}"
    elif first["type"] == "missing":
        needed = next((f for n, f in model.model_fields.items() if location[-1] in (n, f.alias)), None)
        purpose = f" ({needed.description.rstrip('.')})" if needed is not None and needed.description else ""
        message = f"missing. Add it{purpose}."
    source = sources.get(str(location[0])) if location else None
    line = None if source else _find_line(text, location)
    place = source or (f"{path}:{line}" if line else str(path))
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return ": ".join(part for part in (place, key, message) if part) + more


def _find_line(text: str, location: tuple[Any, ...]) -> int | None:
    """Return the line of a key, or of the table that lacks it."""
    if not location:
        return None
    table, key = (str(location[0]), str(location[-1])) if len(location) > 1 else ("", str(location[0]))
    wanted = location[1] if len(location) > 1 and isinstance(location[1], int) else 0
    own_key = rf"\s*[\"']?{re.escape(key)}[\"']?\s*="
    inline_table = rf"{re.escape(table)}(\.{re.escape(key)})?\s*=" if table else "(?!)"
    current, index, header_line = "", 0, None
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line):
            current = header[1]
            index = seen.get(current, 0)
            seen[current] = index + 1
            if current == table and index == wanted:
                header_line = number
        elif re.match(own_key if (current, index) == (table, wanted) else inline_table, line):
            return number
    return header_line
