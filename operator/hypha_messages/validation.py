"""Describes, in one line, the problems of a value that pydantic refuses."""

from collections.abc import Sequence
from typing import Any, Final

from pydantic import ValidationError

MAX_PROBLEMS: Final = 3
MAX_PROBLEM_CHARACTERS: Final = 200


def describe(error: ValidationError | Sequence[Any], whole: str, prefix: str = "") -> str:
    """Return `key: problem; ...`, of bounded length.

    Args:
        error: the error, or its details.
        whole: the name of the complete value, in place of a key, for a problem of all of it.
        prefix: text before every key.
    """
    details: Sequence[Any] = (
        error.errors(include_url=False, include_context=False, include_input=False)
        if isinstance(error, ValidationError)
        else error
    )
    problems = "; ".join(_describe_one(detail, whole, prefix) for detail in details[:MAX_PROBLEMS])
    return f"{problems} (and {len(details) - MAX_PROBLEMS} more)" if len(details) > MAX_PROBLEMS else problems


def _describe_one(detail: Any, whole: str, prefix: str) -> str:
    key = ".".join(map(str, detail["loc"]))
    problem = str(detail["msg"]).removeprefix("Value error, ")
    text = f"{prefix}{key}: {problem}" if key else f"{whole}: {problem}"
    return " ".join(text[:MAX_PROBLEM_CHARACTERS].split())
