"""Reads the bridge's configuration and its job file (JSON)."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hypha_messages.validation import describe

_Model = TypeVar("_Model", bound=BaseModel)


class ConfigError(ValueError):
    """The configuration or the job file cannot be used; the text names the file, the key and the problem."""


def read(model: type[_Model], path: Path) -> _Model:
    """Read and validate a JSON file; ConfigError."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    return parse(model, text, str(path))


def parse(model: type[_Model], text: str | bytes, source: str) -> _Model:
    """Validate JSON text; ConfigError names its source."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, 'the configuration')}") from error
