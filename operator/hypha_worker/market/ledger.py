"""Records which scheduler has leased which part of the worker, and until when. Pure: the caller provides the clock.

A lease is *offered* until the scheduler first renews it, or it lapses. It is then *held* for as long as the scheduler
renews it. It may run one job. A lease that lapses while its job runs is *ending*: its scheduler cannot renew it, and it
reserves its resources until the job is gone. The lease of a finished job reserves nothing. Its scheduler may still
renew it, because the report of the end arrives later.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Literal, Protocol
from uuid import UUID, uuid4

from hypha_contracts.limits import MAX_ENDED, MAX_ENDED_PER_SCHEDULER
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Message, PeerId, Resources, Uuid
from hypha_worker.market.accounts import Accounts
from hypha_worker.market.capacity import Slot, sum_of, weigh
from hypha_worker.market.rules import LedgerRules
from hypha_worker.traces.job_traces import Trace

MIN_ENDED_PER_SCHEDULER: Final = 4
"""Once many schedulers have records of ended jobs, each gets an equal share of `MAX_ENDED`, but at least this one."""
_REMEMBERED_OFFERS: Final = 128
"""Number of offers of which the ledger remembers how they ended."""

JobEnd = Literal["Finished", "Failed", "Unknown"]
OfferEnd = Literal["accepted", "lapsed", "withdrawn"]


class Lease(Message):
    """A reservation. Times are seconds since the epoch.

    The scheduler `accepted` it by its first renewal, at `price`. Its job was `dispatched`, and maybe its executor
    `started`. An *ending* lease has a reason for its end.
    """

    id: Uuid
    scheduler: PeerId
    request_id: Uuid
    executors: tuple[ExecutorDescriptor, ...]
    resources: Resources
    deadline: float
    price: float = 0.0
    state: Literal["offered", "held", "ending"] = "offered"
    end_reason: str = ""
    accepted: float | None = None
    task_id: Uuid | None = None
    dispatched: float | None = None
    started: bool = False
    trace: Trace | None = None


class EndedJob(Message):
    """How a job ended, and whether its scheduler knows. Times are seconds since the epoch.

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
    ended: float = 0.0
    trace: Trace | None = None


class LedgerState(Message):
    """The part of the ledger that outlives the node."""

    version: Literal[1] = 1
    leases: tuple[Lease, ...] = ()
    ended: tuple[EndedJob, ...] = ()
    accounts: Accounts = Accounts()


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
        rules: what it grants. A change concerns existing leases only by their next renewal and their end.
        clock: returns the time in seconds since the epoch.
    """

    def __init__(self, rules: LedgerRules, clock: Callable[[], float]) -> None:
        self._rules = rules
        self._clock = clock
        self._leases: dict[UUID, Lease] = {}
        self._slots: dict[UUID, Slot] = {}
        """Where each lease is placed. Entries of leases that are gone do not matter."""
        self._ended: dict[UUID, EndedJob] = {}
        self.accounts = Accounts()
        self.offers_ended: Counter[OfferEnd] = Counter()
        self._offer_ends: OrderedDict[UUID, OfferEnd] = OrderedDict()

    @property
    def rules(self) -> LedgerRules:
        """What the ledger grants now."""
        return self._rules

    @rules.setter
    def rules(self, rules: LedgerRules) -> None:
        if rules.capacity.kinds != self._rules.capacity.kinds:
            self._slots = {}
        self._rules = rules

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Every lease that reserves something."""
        return tuple(self._leases.values())

    @property
    def unstarted(self) -> int:
        """How many leases have no job whose executor has started, and may still get one."""
        return sum(not lease.started and lease.state != "ending" for lease in self._leases.values())

    @property
    def unreported(self) -> tuple[EndedJob, ...]:
        """The ended jobs that are not yet reported to their schedulers."""
        return tuple(ended for ended in self._ended.values() if not ended.reported)

    def free(self) -> Resources:
        """The resources that no lease reserves. No amount is negative."""
        used = self.reserved()
        return Resources(
            **{name: max(0.0, amount - getattr(used, name)) for name, amount in self._rules.capacity.total}
        )

    def reserved(self, scheduler: str | None = None) -> Resources:
        """What all leases, or those of one scheduler, reserve."""
        leases = self._leases.values()
        return sum_of(lease.resources for lease in leases if scheduler in (None, lease.scheduler))

    def fits(self, resources: Iterable[Resources]) -> bool:
        """Whether all of these fit together into the free capacity."""
        return self._place(tuple(resources)) is not None

    def _place(self, wanted: tuple[Resources, ...]) -> list[Slot] | None:
        """Return where these fit beside the leases, or None."""
        leases, capacity = [lease.resources for lease in self._leases.values()], self._rules.capacity
        if len(leases) + len(wanted) > self._rules.max_live or not sum_of([*leases, *wanted]).fits_into(capacity.total):
            return None
        self._place_leases()
        placed = self._placed()
        return capacity.place(placed, wanted) if len(placed) == len(leases) else None

    def _placed(self) -> list[tuple[Slot, Resources]]:
        return [(slot, self._leases[id_].resources) for id_, slot in self._slots.items() if id_ in self._leases]

    def _place_leases(self) -> None:
        """Place the leases that have no place after a restart or a change of the nodes, the largest first.

        One that does not fit stays without, and until it has ended nothing else fits.
        """
        homeless = [lease for lease in self._leases.values() if lease.id not in self._slots]
        for lease in sorted(homeless, key=lambda lease: weigh(lease.resources), reverse=True):
            if slots := self._rules.capacity.place(self._placed(), [lease.resources]):
                self._slots[lease.id] = slots[0]

    def answered(self, scheduler: str, request_id: UUID) -> bool:
        """Whether there is a live lease for this request."""
        return any(lease.request_id == request_id and lease.scheduler == scheduler for lease in self._leases.values())

    def offer(
        self,
        scheduler: str,
        request_id: UUID,
        executors: Iterable[ExecutorDescriptor],
        resources: Resources,
        *,
        price: float = 0.0,
        begin_trace: Callable[[], Trace | None] = lambda: None,
    ) -> Lease | None:
        """Reserve resources for a request for a short time.

        Returns None if they do not fit into the free capacity, or the scheduler has too many leases or its share.
        """
        rules = self._rules
        own = [lease.resources for lease in self._leases.values() if lease.scheduler == scheduler]
        if len(own) >= max(1, rules.max_live // 2):
            return None
        if rules.share is not None and not sum_of([*own, resources]).fits_into(rules.share):
            return None
        if (slots := self._place((resources,))) is None:
            return None
        lease = Lease(
            id=uuid4(),
            scheduler=scheduler,
            request_id=request_id,
            executors=tuple(executors),
            resources=resources,
            deadline=self._clock() + rules.temporary_s,
            price=price,
            trace=begin_trace(),
        )
        self._slots = {id_: slot for id_, slot in self._slots.items() if id_ in self._leases} | {lease.id: slots[0]}
        self._leases[lease.id] = lease
        return lease

    def withdraw(self, lease_id: UUID) -> bool:
        """Take an offer back. False if the scheduler has renewed it, or it is gone."""
        lease = self._leases.get(lease_id)
        if lease is None or lease.state != "offered":
            return False
        del self._leases[lease_id]
        self._record_offer_end(lease, "withdrawn")
        return True

    def offer_end(self, lease_id: UUID) -> OfferEnd | None:
        """Return how an offer ended. None if its scheduler may still accept it, or if that was long ago."""
        return self._offer_ends.get(lease_id)

    def _record_offer_end(self, lease: Lease, end: OfferEnd) -> None:
        """Record how the offer of a lease ended. A lease that is no longer only offered has none to record."""
        if lease.state == "offered":
            self.offers_ended[end] += 1
            self._offer_ends[lease.id] = end
            if len(self._offer_ends) > _REMEMBERED_OFFERS:
                self._offer_ends.popitem(last=False)

    def renew(self, lease_id: UUID, scheduler: str) -> float:
        """Extend a lease for its owner and return its new deadline. LedgerError if it cannot be extended."""
        now = self._clock()
        for ended in self._ended.values():
            if ended.lease_id == lease_id and ended.scheduler == scheduler and now < ended.until:
                return now + self._rules.duration_s
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LedgerError("no such lease: it has expired or never existed")
        if lease.scheduler != scheduler:
            raise LedgerError(f"the lease belongs to {lease.scheduler}")
        if lease.state == "ending" or now >= lease.deadline:
            raise LedgerError("the lease has expired")
        deadline = now + self._rules.duration_s
        self._hold(lease, deadline=deadline)
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
        return self._hold(chosen, task_id=task_id, dispatched=now)

    def record_started(self, task_id: UUID) -> None:
        """Record that the executor of a job has started."""
        if lease := self.of_task(task_id):
            self._leases[lease.id] = lease.model_copy(update={"started": True})

    def of_task(self, task_id: UUID) -> Lease | None:
        """Return the lease that runs a task."""
        return next((lease for lease in self._leases.values() if lease.task_id == task_id), None)

    def find(self, task_id: UUID, scheduler: str) -> Lease | EndedJob | None:
        """Return the lease that runs this scheduler's task, or how the task ended."""
        ended = (ended for ended in self._ended.values() if ended.started)
        found: Iterable[Lease | EndedJob] = (*self._leases.values(), *ended)
        return next((item for item in found if (item.task_id, item.scheduler) == (task_id, scheduler)), None)

    def unassign(self, task_id: UUID, *, recorded: bool) -> None:
        """Remove a job that was never started from its lease. The lease stays until it lapses.

        If the runtime may have `recorded` the job, it counts as an ended one for as long as the runtime keeps it.
        """
        if (lease := self.of_task(task_id)) is None:
            return
        self._leases[lease.id] = lease.model_copy(update={"task_id": None, "dispatched": None, "state": "held"})
        if recorded:
            self._ended[task_id] = self._ended_job(lease, task_id, "Failed", reported=True, started=False)

    def end(self, task_id: UUID, status: JobEnd) -> EndedJob | None:
        """Release the lease of a job that is gone. None if there is no such job."""
        if (lease := self.of_task(task_id)) is None:
            return None
        self._remove(lease)
        ended = self._ended[task_id] = self._ended_job(lease, task_id, status)
        return ended

    def record_reported(self, task_id: UUID) -> None:
        """Record that the scheduler knows how the job ended, or never will."""
        if task_id in self._ended:
            self._ended[task_id] = self._ended[task_id].model_copy(update={"reported": True})

    def expire(self) -> list[Lease]:
        """Return the leases that end now. Leases without a job are dropped, the others are *ending* until `end`."""
        now = self._clock()
        over = []
        for lease in self.leases:
            if reason := self._end_reason(lease, now):
                self._record_offer_end(lease, "lapsed")
                if lease.task_id is None:
                    self._remove(lease)
                    over.append(lease)
                else:
                    ending = lease.model_copy(update={"state": "ending", "end_reason": reason})
                    self._leases[lease.id] = ending
                    over.append(ending)
        self._ended = {
            task_id: ended
            for task_id, ended in self._ended.items()
            if not ended.reported or now < max(ended.until, ended.kept_until)
        }
        return over

    def _end_reason(self, lease: Lease, now: float) -> str:
        """Return why a lease must end now, or an empty text."""
        rules = self._rules
        if lease.state == "ending":
            return ""
        if now >= lease.deadline:
            return "its lease expired"
        if rules.closes is not None and now >= rules.closes:
            return "the worker is suspended, and the deadline for its jobs is over"
        if rules.max_job_s is not None and lease.dispatched is not None and now >= lease.dispatched + rules.max_job_s:
            return f"it ran for {rules.max_job_s:g} s, which is as long as a job of this worker may run"
        return ""

    def _remove(self, lease: Lease) -> None:
        """Remove a lease, and count it in the account of its scheduler if that had accepted it."""
        del self._leases[lease.id]
        if lease.accepted is not None:
            leased_s = max(0.0, self._clock() - lease.accepted)
            self.accounts = self.accounts.count(lease.id, lease.scheduler, lease.price, leased_s)

    def state(self) -> LedgerState:
        """Return everything but offers."""
        held = tuple(lease for lease in self._leases.values() if lease.state != "offered")
        return LedgerState(leases=held, ended=tuple(self._ended.values()), accounts=self.accounts)

    def restore(self, state: LedgerState) -> None:
        """Take over the state of an earlier node, even if the capacity has shrunk since."""
        self._leases = {lease.id: lease for lease in state.leases}
        self._ended = {ended.task_id: ended for ended in state.ended}
        self._slots, self.accounts = {}, state.accounts

    def recover(self, lease: Lease) -> None:
        """Add a lease that the ledger has lost but the job's own record confirms."""
        self._leases[lease.id] = lease

    def _hold(self, lease: Lease, **changes: float | UUID) -> Lease:
        """Change a lease that its scheduler uses, which accepts the offer."""
        self._record_offer_end(lease, "accepted")
        accepted = self._clock() if lease.accepted is None else lease.accepted
        held = self._leases[lease.id] = lease.model_copy(update={**changes, "accepted": accepted, "state": "held"})
        return held

    def _ended_job(self, lease: Lease, task_id: UUID, status: JobEnd, **more: bool) -> EndedJob:
        now = self._clock()
        return EndedJob(
            task_id=task_id,
            lease_id=lease.id,
            scheduler=lease.scheduler,
            status=status,
            until=now + self._rules.ended_s if status == "Finished" else 0.0,
            kept_until=now + self._rules.kept_s,
            ended=now,
            trace=lease.trace,
            **more,
        )

    def _check_ended(self, scheduler: str) -> None:
        """Check that another record of an ended job of this scheduler may be kept. LedgerError."""
        kept = Counter(ended.scheduler for ended in self._ended.values())
        share = max(MIN_ENDED_PER_SCHEDULER, MAX_ENDED // len(kept.keys() | {scheduler}))
        if kept[scheduler] >= min(MAX_ENDED_PER_SCHEDULER, share):
            raise LedgerError(f"records of {kept[scheduler]} ended jobs of the scheduler are kept; dispatch more later")
