"""Decides which requests may get an offer and ranks them. Pure functions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from hypha_contracts.reach import DESCRIPTIONS, Reach
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.units import RESOURCES, UNITS, devices_needed, exceeding
from hypha_messages.advertisement import TOPIC, TOPICS, RequestWorker
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources
from hypha_worker.market.capacity import Capacity, weigh

Score = tuple[float, float]
"""Larger is better. The second part decides between equal first parts."""


class Refusal(NamedTuple):
    """The reason for which a request never gets an offer, for programs, and a message for people."""

    reason: WorkerReason
    message: str


@dataclass(frozen=True)
class Preferences:
    """Scores of the strategy affinity for schedulers (by peer id) and executors (by "class/name" or "class")."""

    schedulers: Mapping[str, float] = field(default_factory=dict)
    executors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """The worker's capacity, executors, prices, schedulers and preferences.

    Attributes:
        minimum: the least that a lease reserves, above zero. Its GPU memory is that of leases that ask for any. A
            request whose lease would then fit on no node gets no offer.
        gpu_device: GB of one GPU. If it is set, leases share no GPU.
        allowed: the only schedulers that get offers; None if all do.
        blocked: schedulers that get no offers.
        max_share: the part of the capacity that one scheduler may have.
        aggregate_needs_reach: jobs of class aggregate get offers only while peers can send bulk data to the node.
        reach: how peers reach the node, or None while that is unknown.
    """

    capacity: Capacity
    minimum: Resources
    executors: frozenset[ExecutorDescriptor]
    price: float
    floor: float
    offer: Literal["flexible", "whole"] = "whole"
    selection: Literal["profit", "utilization", "affinity"] = "profit"
    preferences: Preferences = Preferences()
    gpu_device: float = 0.0
    allowed: frozenset[str] | None = None
    blocked: frozenset[str] = frozenset()
    max_share: float = 1.0
    aggregate_needs_reach: bool = False
    reach: Reach | None = None

    @property
    def topics(self) -> list[str]:
        """The topics on which requests for this worker may arrive: that of all workers, and those of its executors."""
        return sorted({TOPIC} | {TOPICS[executor.class_] for executor in self.executors})

    def exclusion(self, scheduler: str) -> Refusal | None:
        """Return why a scheduler gets no offers, whatever it asks for, or None if it may get some."""
        if scheduler in self.blocked:
            return Refusal(WorkerReason.SCHEDULER_BLOCKED, f"scheduler {scheduler} is blocked")
        if self.allowed is not None and scheduler not in self.allowed:
            return Refusal(
                WorkerReason.SCHEDULER_NOT_ALLOWED, f"scheduler {scheduler} is not in the list of allowed ones"
            )
        return None

    def refusal(self, request: RequestWorker, now: float) -> Refusal | None:
        """Return why a request never gets an offer, or None if it may get one once it fits into the free capacity."""
        if (refusal := self._executor_refusal(request)) is not None:
            return refusal
        if request.bid < self.floor:
            return Refusal(WorkerReason.BID_BELOW_FLOOR, f"the bid {request.bid:g} is below the floor {self.floor:g}")
        if not self.options(request):
            return self._too_large(request.spec.resources)
        if request.timeout.timestamp <= now:
            return Refusal(WorkerReason.REQUEST_EXPIRED, "it has expired")
        return None

    def _executor_refusal(self, request: RequestWorker) -> Refusal | None:
        unsupported = [executor for executor in request.spec.executor if executor not in self.executors]
        if unsupported:
            return Refusal(WorkerReason.EXECUTOR_UNSUPPORTED, f"executor {unsupported[0]} is not supported")
        if not request.spec.executor:
            return Refusal(WorkerReason.NO_EXECUTOR, "it names no executor")
        if self._needs_reach(request) and self.reach is not None and not self.reach.takes_bulk:
            how = DESCRIPTIONS[self.reach]
            return Refusal(WorkerReason.NO_BULK_DATA, f"trainers could not send it their updates: peers reach it {how}")
        return None

    def postpones(self, request: RequestWorker) -> bool:
        """Whether a request waits until the node knows how peers reach it."""
        return self.reach is None and self._needs_reach(request)

    def _needs_reach(self, request: RequestWorker) -> bool:
        aggregates = any(executor.class_ == "aggregate" for executor in request.spec.executor)
        return aggregates and self.aggregate_needs_reach

    @cached_property
    def share(self) -> Resources:
        """What the leases of one scheduler may reserve together."""
        return Resources(**{name: amount * self.max_share for name, amount in self.capacity.total})

    @cached_property
    def least(self) -> tuple[Resources, ...]:
        """The least that a lease may reserve; a free node of one kind is as good as one of another."""
        return self.capacity.shapes if self.offer == "whole" else (self._raised(Resources()),)

    def options(self, request: RequestWorker) -> tuple[Resources, ...]:
        """Return what an offer for this request may reserve, the least first. Empty if it asks for too much.

        With the strategy whole, each option is as much as a node of one kind has.
        """
        wanted = request.spec.resources
        if not wanted.fits_into(self.capacity.total):
            return ()
        raised = self._raised(wanted)
        shapes = tuple(shape for shape in self.capacity.shapes if raised.fits_into(shape))
        options = shapes if self.offer == "whole" else (raised,) if shapes else ()
        return tuple(reserved for reserved in options if reserved.fits_into(self.share))

    def asked_price(self, request: RequestWorker) -> float:
        """Return the price of an offer for this request."""
        return request.bid if self.offer == "flexible" else max(self.price, request.bid)

    def score(self, scheduler: str, request: RequestWorker, free: Resources) -> Score:
        """Rate a request by the selection strategy, for what its lease would reserve. `free` is the free capacity."""
        reserved = next(iter(self.options(request)), request.spec.resources)
        profit = request.bid / weigh(reserved)
        if self.selection == "utilization":
            return self._used_share(reserved, free), profit
        if self.selection == "affinity":
            return self._affinity(scheduler, request.spec.executor), profit
        return profit, 0.0

    def _raised(self, wanted: Resources) -> Resources:
        """Raise amounts to the minimum, and GPU memory to complete devices.

        An amount of zero means that the scheduler did not specify it. Only zero GPU memory stays zero: no GPU.
        """
        least = dict(self.minimum)
        if self.gpu_device:
            least["gpu"] = devices_needed(wanted.gpu, self.gpu_device) * self.gpu_device
        if not wanted.gpu:
            least["gpu"] = 0.0
        return Resources(**{name: max(amount, least[name]) for name, amount in wanted})

    def _too_large(self, wanted: Resources) -> Refusal:
        """Return of what a request without options asks for more than it may ever get."""
        total, largest = self.capacity.total, self.capacity.largest
        needed = self._raised(wanted) if wanted.fits_into(total) else wanted
        if lacking := _shortages(needed, total, "this worker has"):
            return Refusal(WorkerReason.MORE_THAN_CAPACITY, f"it asks for {lacking}")
        if lacking := _shortages(needed, largest, "one job may have at most"):
            return Refusal(WorkerReason.MORE_THAN_PER_JOB, f"it asks for {lacking}")
        shapes = [shape for shape in self.capacity.shapes if needed.fits_into(shape)]
        if not shapes:
            return Refusal(WorkerReason.MORE_THAN_PER_JOB, "no single node of this worker has all that it asks for")
        lacking = _shortages(shapes[0] if self.offer == "whole" else needed, self.share, "one scheduler may have")
        return Refusal(WorkerReason.MORE_THAN_SHARE, f"its lease would reserve {lacking}")

    def _used_share(self, reserved: Resources, free: Resources) -> float:
        """Return the mean share of the free capacity that a lease would use, or -1 if it does not fit."""
        if not reserved.fits_into(free):
            return -1.0
        shares = [getattr(reserved, name) / getattr(free, name) for name in RESOURCES if getattr(free, name) > 0]
        return sum(shares) / len(shares) if shares else 0.0

    def _affinity(self, scheduler: str, executors: Iterable[ExecutorDescriptor]) -> float:
        """Return the preference for the scheduler and for the least preferred executor that the job may use."""
        wanted = self.preferences.executors
        least = min((wanted.get(str(e), wanted.get(e.class_, 0.0)) for e in executors), default=0.0)
        return self.preferences.schedulers.get(scheduler, 0.0) + least


def _shortages(needed: Resources, most: Resources, limit: str) -> str:
    """Return each resource of which more is needed than a limit admits, with both amounts."""
    return ", and for ".join(
        f"{getattr(needed, name):.9g} {UNITS[name]}, of which {limit} {getattr(most, name):.9g}"
        for name in exceeding(needed, most)
    )
