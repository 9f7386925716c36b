"""What a job is to the node, and what runs it: the seam between the job manager and the runtimes."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

from hypha_messages.job import JobSpec
from hypha_messages.progress import Progress
from hypha_messages.types import Resources


@dataclass(frozen=True)
class Job:
    """A task that a scheduler dispatched, and the lease it runs under.

    Attributes:
        task_id: the id of the dispatch, by which the node knows the job.
        lease_id: the lease whose end ends the job.
        scheduler: the peer id of the scheduler that dispatched it.
        resources: what the lease reserves: GB of video memory, memory and storage, cores.
        deadline: when the lease ends unless it is renewed, in seconds since the epoch.
        token: what the job's bridge shows to the connector API.
    """

    task_id: UUID
    lease_id: UUID
    scheduler: str
    spec: JobSpec
    resources: Resources
    deadline: float
    token: str = field(repr=False)


@dataclass(frozen=True)
class AdoptedJob:
    """A job that outlived the node.

    Attributes:
        running: whether it still runs; if not, its end follows as an event, like any other job's.
    """

    job: Job
    running: bool


@dataclass(frozen=True)
class Started:
    """The executor of the job runs."""

    task_id: UUID


@dataclass(frozen=True)
class Finished:
    """The executor ended well; nothing of the job is left."""

    task_id: UUID


@dataclass(frozen=True)
class Failed:
    """The job ended otherwise (a crash, a limit, or because it was told to); nothing of it is left."""

    task_id: UUID
    reason: str
    last_lines: tuple[str, ...] = ()


JobEvent = Started | Finished | Failed


class LaunchError(Exception):
    """A job cannot be started; says why and what the owner of the worker can do."""


class Runtime(Protocol):
    """Runs jobs. Every launched or adopted job sends exactly one Finished or Failed."""

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """What becomes of the jobs.

        Asking for the next event says that the one before is recorded; until then a restarted node reports it again.
        """

    async def launch(self, job: Job) -> None:
        """Start the job; returns once its processes are on their way. LaunchError if it cannot run here."""

    async def extend(self, task_id: UUID, deadline: float) -> None:
        """The lease was renewed: the job may run until `deadline` (seconds since the epoch); no-op if unknown."""

    async def terminate(self, task_id: UUID, reason: str) -> None:
        """Tell the job to end and return once nothing of it is left. No-op if unknown."""

    def note_progress(self, task_id: UUID, progress: Progress) -> None:
        """The job reported this to its scheduler; whoever watches the worker may like to know. No-op if unknown."""

    def note_reported(self, task_id: UUID) -> None:
        """The job's scheduler knows how it ended, or will never know: nobody asks for it again. No-op if unknown."""

    async def adopt(self) -> list[AdoptedJob]:
        """Find what outlived the node, once, before anything is launched; what is left of dead jobs is removed."""
