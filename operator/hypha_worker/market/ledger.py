"""Records which scheduler has leased which part of the worker, and until when. Pure: the caller provides the clock.

A lease is *offered* until the scheduler first renews it, or it lapses. It is then *held* for as long as the scheduler
renews it. It may run one job. A lease that lapses while its job runs is *ending*: its scheduler cannot renew it, and it
reserves its resources until the job is gone. The lease of a finished job reserves nothing. Its scheduler may still
renew it, because the report of the end arrives later.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from math import fsum
from typing import Final, Literal, Protocol
from uuid import UUID, uuid4

from hypha_contracts.units import RESOURCES
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Message, PeerId, Resources, Uuid

MAX_ENDED_PER_SCHEDULER: Final = 64
MAX_ENDED: Final = 512
"""Maximum number of kept records of ended jobs. Once many schedulers have some, each gets an equal share."""
MIN_ENDED_PER_SCHEDULER: Final = 4

JobEnd = Literal["Finished", "Failed", "Unknown"]


class Lease(Message):
    """A reservation. Times are seconds since the epoch."""

    id: Uuid
    scheduler: PeerId
    request_id: Uuid
    executors: tuple[ExecutorDescriptor, ...]
    resources: Resources
    deadline: float
    state: Literal["offered", "held", "ending"] = "offered"
    task_id: Uuid | None = None


class EndedJob(Message):
    """How a job ended, and whether its scheduler knows.

    Its lease can be renewed until `until`. The runtime keeps records of the job until `kept_until`. A job that was not
    `started` has no end to report.
    """

    task_id: Uuid
    lease_id: Uuid
    scheduler: PeerId
    status: JobEnd
    until: float
    kept_until: float = 0.0
    reported: bool = False
    started: bool = True


class LedgerState(Message):
    """The part of the ledger that outlives the node."""

    version: Literal[1] = 1
    leases: tuple[Lease, ...] = ()
    ended: tuple[EndedJob, ...] = ()


class LedgerStore(Protocol):
    """Keeps the ledger's state across restarts of the node."""

    async def load(self) -> LedgerState | None:
        """Return the state that an earlier node saved, or None if there is none."""

    async def save(self, state: LedgerState) -> None:
        """Return once this state or a later one is kept. A failure is logged, and the leases stay valid."""


class LedgerError(Exception):
    """The ledger refuses a change of a lease. The message says why."""


class Ledger:
    """The leases of one worker. Together they never reserve more than the capacity, apart from rounding errors.

    Args:
        capacity: what all leases together may reserve.
        clock: returns the time in seconds since the epoch.
        temporary_s: how long an offer waits for its first renewal.
        duration_s: duration of a lease, counted from each renewal.
        ended_s: how long the lease of a finished job can still be renewed.
        kept_s: how long the runtime keeps records of an ended job.
        max_live: maximum number of leases. One scheduler may have half of them.
    """

    def __init__(
        self,
        capacity: Resources,
        clock: Callable[[], float],
        *,
        temporary_s: float = 0.5,
        duration_s: float = 10,
        ended_s: float = 60,
        kept_s: float = 0,
        max_live: int = 1024,
    ) -> None:
        self.capacity = capacity
        self._clock = clock
        self._temporary_s = temporary_s
        self._duration_s = duration_s
        self._ended_s = ended_s
        self._kept_s = kept_s
        self._max_live = max_live
        self._max_per_scheduler = max(1, max_live // 2)
        self._leases: dict[UUID, Lease] = {}
        self._ended: dict[UUID, EndedJob] = {}

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Every lease that reserves something."""
        return tuple(self._leases.values())

    @property
    def unreported(self) -> tuple[EndedJob, ...]:
        """The ended jobs that are not yet reported to their schedulers."""
        return tuple(ended for ended in self._ended.values() if not ended.reported)

    def free(self) -> Resources:
        """The resources that no lease reserves. No amount is negative."""
        return Resources(**{name: max(0.0, getattr(self.capacity, name) - self._used(name, ())) for name in RESOURCES})

    def fits(self, resources: Iterable[Resources]) -> bool:
        """Whether all of these fit together into the free capacity."""
        wanted = tuple(resources)
        if len(self._leases) + len(wanted) > self._max_live:
            return False
        return Resources(**{name: self._used(name, wanted) for name in RESOURCES}).fits_into(self.capacity)

    def answered(self, scheduler: str, request_id: UUID) -> bool:
        """Whether there is a live lease for this request."""
        return any(lease.request_id == request_id and lease.scheduler == scheduler for lease in self._leases.values())

    def offer(
        self, scheduler: str, request_id: UUID, executors: Iterable[ExecutorDescriptor], resources: Resources
    ) -> Lease | None:
        """Reserve resources for a request for a short time.

        Returns None if they do not fit into the free capacity, or the scheduler has too many leases.
        """
        own = sum(lease.scheduler == scheduler for lease in self._leases.values())
        if own >= self._max_per_scheduler or not self.fits([resources]):
            return None
        lease = Lease(
            id=uuid4(),
            scheduler=scheduler,
            request_id=request_id,
            executors=tuple(executors),
            resources=resources,
            deadline=self._clock() + self._temporary_s,
        )
        self._leases[lease.id] = lease
        return lease

    def withdraw(self, lease_id: UUID) -> bool:
        """Take an offer back. False if the scheduler has renewed it, or it is gone."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.state != "offered":
            return False
        del self._leases[lease_id]
        return True

    def renew(self, lease_id: UUID, scheduler: str) -> float:
        """Extend a lease for its owner and return its new deadline. LedgerError if it cannot be extended."""
        now = self._clock()
        for ended in self._ended.values():
            if ended.lease_id == lease_id and ended.scheduler == scheduler and now < ended.until:
                return now + self._duration_s
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LedgerError("no such lease: it has expired or never existed")
        if lease.scheduler != scheduler:
            raise LedgerError(f"the lease belongs to {lease.scheduler}")
        if lease.state == "ending" or now >= lease.deadline:
            raise LedgerError("the lease has expired")
        deadline = now + self._duration_s
        self._leases[lease_id] = lease.model_copy(update={"deadline": deadline, "state": "held"})
        return deadline

    def assign(self, scheduler: str, executor: ExecutorDescriptor, task_id: UUID) -> Lease:
        """Put a job on the lease that answered the scheduler's request for this executor.

        Raises:
            LedgerError: the scheduler has no live lease for this executor that is without a job, or too many records of
                its ended jobs are kept.
        """
        self._check_ended(scheduler)
        now = self._clock()
        live = [lease for lease in self._leases.values() if lease.state != "ending" and now < lease.deadline]
        if any(lease.task_id == task_id for lease in self._leases.values()):
            raise LedgerError("this task is already dispatched")
        own = [lease for lease in live if lease.scheduler == scheduler]
        fitting = [lease for lease in own if executor in lease.executors]
        vacant = [lease for lease in fitting if lease.task_id is None]
        if not vacant:
            reason = "has no live lease" if not own else f"holds no lease for {executor}" if not fitting else ""
            raise LedgerError(f"the scheduler {reason or 'has a job on each of its leases for ' + str(executor)}")
        chosen = max(vacant, key=lambda lease: (lease.state == "held", lease.deadline))
        assigned = chosen.model_copy(update={"task_id": task_id, "state": "held"})
        self._leases[chosen.id] = assigned
        return assigned

    def find(self, task_id: UUID, scheduler: str) -> Lease | EndedJob | None:
        """Return the lease that runs this scheduler's task, or how the task ended."""
        ended = (ended for ended in self._ended.values() if ended.started)
        found: Iterable[Lease | EndedJob] = (*self._leases.values(), *ended)
        return next((item for item in found if (item.task_id, item.scheduler) == (task_id, scheduler)), None)

    def unassign(self, task_id: UUID, *, recorded: bool) -> None:
        """Remove a job that was never started from its lease. The lease stays until it lapses.

        If the runtime may have `recorded` the job, it counts as an ended one for as long as the runtime keeps it.
        """
        lease = next((lease for lease in self._leases.values() if lease.task_id == task_id), None)
        if lease is None:
            return
        self._leases[lease.id] = lease.model_copy(update={"task_id": None, "state": "held"})
        if recorded:
            self._ended[task_id] = self._ended_job(lease, task_id, "Failed", reported=True, started=False)

    def end(self, task_id: UUID, status: JobEnd) -> EndedJob | None:
        """Release the lease of a job that is gone. None if there is no such job."""
        lease = next((lease for lease in self._leases.values() if lease.task_id == task_id), None)
        if lease is None:
            return None
        del self._leases[lease.id]
        ended = self._ended[task_id] = self._ended_job(lease, task_id, status)
        return ended

    def record_reported(self, task_id: UUID) -> None:
        """Record that the scheduler knows how the job ended, or never will."""
        if task_id in self._ended:
            self._ended[task_id] = self._ended[task_id].model_copy(update={"reported": True})

    def expire(self) -> list[Lease]:
        """Return the leases that have lapsed. Leases without a job are dropped, the others are *ending* until `end`."""
        now = self._clock()
        expired = [lease for lease in self._leases.values() if lease.state != "ending" and now >= lease.deadline]
        for lease in expired:
            if lease.task_id is None:
                del self._leases[lease.id]
            else:
                self._leases[lease.id] = lease.model_copy(update={"state": "ending"})
        self._ended = {
            task_id: ended
            for task_id, ended in self._ended.items()
            if not ended.reported or now < max(ended.until, ended.kept_until)
        }
        return expired

    def state(self) -> LedgerState:
        """Return everything but offers."""
        held = tuple(lease for lease in self._leases.values() if lease.state != "offered")
        return LedgerState(leases=held, ended=tuple(self._ended.values()))

    def restore(self, state: LedgerState) -> None:
        """Take over the state of an earlier node, even if the capacity has shrunk since."""
        self._leases = {lease.id: lease for lease in state.leases}
        self._ended = {ended.task_id: ended for ended in state.ended}

    def recover(self, lease: Lease) -> None:
        """Add a lease that the ledger has lost but the job's own record confirms."""
        self._leases[lease.id] = lease

    def _ended_job(self, lease: Lease, task_id: UUID, status: JobEnd, **more: bool) -> EndedJob:
        now = self._clock()
        return EndedJob(
            task_id=task_id,
            lease_id=lease.id,
            scheduler=lease.scheduler,
            status=status,
            until=now + self._ended_s if status == "Finished" else 0.0,
            kept_until=now + self._kept_s,
            **more,
        )

    def _check_ended(self, scheduler: str) -> None:
        """Check that another record of an ended job of this scheduler may be kept. LedgerError."""
        kept = Counter(ended.scheduler for ended in self._ended.values())
        share = max(MIN_ENDED_PER_SCHEDULER, MAX_ENDED // len(kept.keys() | {scheduler}))
        if kept[scheduler] >= min(MAX_ENDED_PER_SCHEDULER, share):
            raise LedgerError(f"records of {kept[scheduler]} ended jobs of the scheduler are kept; dispatch more later")

    def _used(self, name: str, more: Iterable[Resources]) -> float:
        amounts = [getattr(lease.resources, name) for lease in self._leases.values()]
        return fsum([*amounts, *(getattr(resources, name) for resources in more)])
