"""The job specification as every executor reads it: JSON, in which each error names the field."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hypha_executor.errors import JobError


class Node:
    """A JSON object of the specification and its path. Every method raises JobError with the path of a wrong field."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise JobError(f"{path} must be an object, not {type(value).__name__}")
        self.value: dict[str, Any] = value
        self.path = path

    def get(self, key: str) -> Any:
        """Return the value of a required field."""
        if key not in self.value:
            raise JobError(f"{self.path}.{key} is missing")
        return self.value[key]

    def node(self, key: str) -> "Node":
        """Return an object."""
        return Node(self.get(key), f"{self.path}.{key}")

    def optional(self, key: str) -> "Node | None":
        """Return an object, or None if the field is absent or null."""
        return None if self.value.get(key) is None else self.node(key)

    def text(self, key: str) -> str:
        """Return a text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise JobError(f"{self.path}.{key} must be text, not {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts with at least one element, such as the peers of a reference."""
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
            raise JobError(f"{self.path}.{key} must be a list of names, not {value!r}")
        return tuple(value)

    def number(self, key: str, *, low: float) -> float:
        """Return a finite number of at least `low`."""
        value = self.get(key)
        if not is_number(value) or not low <= value < float("inf"):
            raise JobError(f"{self.path}.{key} must be a number of at least {low}, not {value!r}")
        return float(value)


def is_number(value: object) -> bool:
    """Return whether a value from JSON is a number; true and false are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class JobSpec:
    """A job specification.

    Attributes:
        job_id: The job's UUID, as the specification writes it.
        config: The executor's configuration. The references in it are for the bridge, unchanged.
    """

    job_id: str
    config: Node


def parse_job(text: str, executor_class: str) -> JobSpec:
    """Parse a job specification for an executor of one class: `train`, `aggregate` or `inference`.

    Raises:
        JobError: The text is not JSON, the job is of another class, or a field is missing or wrong.
    """
    try:
        spec = Node(json.loads(text), "job")
    except (ValueError, RecursionError) as error:
        raise JobError(f"the job is not JSON ({error}); give the job specification with --job or --job-file") from None
    executor = spec.node("executor")
    if (found := executor.text("class")) != executor_class:
        raise JobError(
            f"executor.class is {found!r}, this executor runs {executor_class!r} jobs; check the worker's executors"
        )
    job_id = spec.text("job_id")
    try:
        UUID(job_id)
    except ValueError:
        raise JobError(f"job.job_id must be a UUID, not {job_id!r}") from None
    return JobSpec(job_id, executor.node("config"))
