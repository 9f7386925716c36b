"""The job: which peers send pseudo-gradients, which get the update, and the outer optimiser's numbers."""

from dataclasses import dataclass

from hypha_executor.bridge import Reference
from hypha_executor.errors import JobError
from hypha_executor.job import parse_job


@dataclass(frozen=True)
class AggregateJob:
    """An aggregate job.

    Attributes:
        job_id: The job's UUID.
        members: The peers that send pseudo-gradients.
        updates: The reference to the members.
        results: The reference to the peers that get the updates.
        learning_rate: The outer optimiser's learning rate, above 0.
        momentum: The outer optimiser's momentum, at least 0 and below 1.
    """

    job_id: str
    members: frozenset[str]
    updates: Reference
    results: Reference
    learning_rate: float
    momentum: float


def parse_aggregate_job(text: str) -> AggregateJob:
    """Parse a job specification.

    Raises:
        JobError: It is not JSON, lacks something, or holds a number out of its range.
    """
    spec = parse_job(text, "aggregate")
    updates, results, optimizer = (spec.config.node(key) for key in ("updates", "results", "optimizer"))
    results.texts("peers")
    learning_rate = optimizer.number("learning-rate", low=0)
    momentum = optimizer.number("momentum", low=0)
    if learning_rate == 0:
        raise JobError(f"{optimizer.path}.learning-rate is 0; it must be above 0")
    if momentum >= 1:
        raise JobError(f"{optimizer.path}.momentum is {momentum}; it must be at least 0 and below 1")
    members = frozenset(updates.texts("peers"))
    return AggregateJob(spec.job_id, members, updates.value, results.value, learning_rate, momentum)
