"""A job as the node knows it, and the events of its life."""

from dataclasses import dataclass
from uuid import UUID

from hypha_messages.job import JobSpec
from hypha_messages.types import Resources


@dataclass(frozen=True)
class Job:
    """A task that a scheduler dispatched, and the lease it runs under.

    Attributes:
        task_id: The id of the dispatch, by which the node knows the job.
        lease_id: The lease whose end ends the job.
        scheduler: The peer id of the scheduler that dispatched it.
        spec: The specification that the scheduler sent.
        resources: What the lease reserves: GB of video memory, memory and storage, cores.
        deadline: When the lease ends unless it is renewed, in seconds since the epoch.
    """

    task_id: UUID
    lease_id: UUID
    scheduler: str
    spec: JobSpec
    resources: Resources
    deadline: float


@dataclass(frozen=True)
class AdoptedJob:
    """A job that outlived the node.

    Attributes:
        running: Whether it still runs. If not, its end follows as an event, like that of any other job.
    """

    job: Job
    running: bool


@dataclass(frozen=True)
class Started:
    """The executor of the job runs."""

    task_id: UUID


@dataclass(frozen=True)
class Finished:
    """The executor ended well. Nothing of the job is left."""

    task_id: UUID


@dataclass(frozen=True)
class Failed:
    """The job crashed, exceeded a limit or was stopped. Nothing of it is left."""

    task_id: UUID
    reason: str
    last_lines: tuple[str, ...] = ()


JobEvent = Started | Finished | Failed


class LaunchError(Exception):
    """A job cannot be started. The message says why and what the owner of the worker can do."""
