"""The job: who sends pseudo-gradients, who gets the update, and the outer optimiser's numbers."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from hypha_parameter_server.errors import JobError


@dataclass(frozen=True)
class Job:
    """An aggregate job. `updates` and `results` are references as the bridge takes them."""

    job_id: str
    members: frozenset[str]
    updates: Mapping[str, Any]
    results: Mapping[str, Any]
    learning_rate: float
    momentum: float


def parse_job(text: str) -> Job:
    """The job in a specification's JSON.

    Raises:
        JobError: it is not JSON, lacks something, or holds a number out of its range.
    """
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise JobError(f"the job specification is not JSON: {error}") from error
    executor = _get(spec, "executor", dict)
    if executor.get("class") != "aggregate":
        raise JobError(f"executor.class is {executor.get('class')!r}; a parameter server runs 'aggregate' jobs only")
    updates = _get(spec, "executor.config.updates", dict)
    results = _get(spec, "executor.config.results", dict)
    job_id = _get(spec, "job_id", str)
    try:
        UUID(job_id)
    except ValueError as error:
        raise JobError(f"job_id {job_id!r} is not a uuid") from error
    _peers(results, "results")
    learning_rate = _number(spec, "executor.config.optimizer.learning-rate")
    momentum = _number(spec, "executor.config.optimizer.momentum")
    if learning_rate <= 0:
        raise JobError(f"optimizer.learning-rate is {learning_rate}; it must be above 0")
    if not 0 <= momentum < 1:
        raise JobError(f"optimizer.momentum is {momentum}; it must be at least 0 and below 1")
    return Job(job_id, frozenset(_peers(updates, "updates")), updates, results, learning_rate, momentum)


def _peers(reference: Mapping[str, Any], name: str) -> list[str]:
    peers = reference.get("peers")
    if not isinstance(peers, list) or not peers or not all(isinstance(peer, str) and peer for peer in peers):
        raise JobError(f"executor.config.{name} names no peers; it must be a reference of type 'peers'")
    return peers


def _number(spec: Any, path: str) -> float:
    value = _get(spec, path, (int, float))
    if isinstance(value, bool) or not math.isfinite(value):
        raise JobError(f"{path} in the job specification is {value}; it must be a finite number")
    return float(value)


def _get(spec: Any, path: str, kind: type | tuple[type, ...]) -> Any:
    value = spec
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        raise JobError(f"{path} is missing from the job specification, or of the wrong type")
    return value
