"""A job of the node, its events, and the operations on running jobs."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from hypha_contracts.trace_context import parse_trace_context
from hypha_messages.job import JobSpec
from hypha_messages.types import Resources


@dataclass(frozen=True)
class Job:
    """A task that a scheduler dispatched, and the lease it runs under.

    Attributes:
        task_id: the id of the dispatch, which identifies the job.
        scheduler: the peer id of the scheduler that dispatched it.
        resources: the amounts that the lease reserves.
        deadline: when the lease ends unless it is renewed, in seconds since the epoch.
        price: of the lease.
        accepted: when the scheduler accepted the lease, in seconds since the epoch; None if that is not known.
        began: when it was dispatched, in seconds since the epoch.
        traceparent: the span in which its bridge and executor run. None if nothing is exported.
    """

    task_id: UUID
    lease_id: UUID
    scheduler: str
    spec: JobSpec
    resources: Resources
    deadline: float
    price: float = 0.0
    accepted: float | None = None
    began: float = 0.0
    traceparent: str | None = None

    @property
    def traced(self) -> bool:
        """Whether spans of the job are exported."""
        context = parse_trace_context(self.traceparent)
        return context is not None and context.sampled


@dataclass(frozen=True)
class AdoptedJob:
    """A job that outlived the node.

    If it no longer runs, its end follows as an event. Its executor has `started`, or that follows as an event too.
    """

    job: Job
    running: bool
    started: bool = True


@dataclass(frozen=True)
class Started:
    """The executor of the job runs."""

    task_id: UUID


@dataclass(frozen=True)
class Stage:
    """A stage of the job's start is over. Times are seconds since the epoch."""

    task_id: UUID
    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Finished:
    """The executor succeeded. Nothing of the job is left."""

    task_id: UUID


@dataclass(frozen=True)
class Failed:
    """The job crashed, exceeded a limit or was stopped. Nothing of it is left.

    Attributes:
        start_failed: if the executor has not started because of the cluster, when the job ended, in seconds since the
            epoch by the clock of whoever found that out.
    """

    task_id: UUID
    reason: str
    last_lines: tuple[str, ...] = ()
    start_failed: float | None = None


JobEvent = Stage | Started | Finished | Failed


class RunningJobs(Protocol):
    """The operations on jobs that have been launched or adopted."""

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """The events of all jobs.

        Asking for the next event confirms that the previous one is recorded. Until then a restarted node gets it again.
        """

    async def extend(self, task_id: UUID, deadline: float) -> None:
        """Let the job run until `deadline` (seconds since the epoch), for its lease was renewed. No-op if unknown."""

    async def terminate(self, task_id: UUID, reason: str) -> None:
        """Stop the job and return once nothing of it is left. No-op if unknown."""

    def record_reported(self, task_id: UUID) -> None:
        """Record that the scheduler knows how the job ended, or never will. No-op if unknown."""


class LaunchError(Exception):
    """A job cannot be started. The message says why and what the owner of the worker can do.

    Attributes:
        recorded: whether the runtime may keep records of the job all the same.
    """

    def __init__(self, message: str, *, recorded: bool = False) -> None:
        super().__init__(message)
        self.recorded = recorded
