"""Decides which requests may get an offer and ranks them. Pure functions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hypha_contracts.reasons import WorkerReason
from hypha_contracts.units import RESOURCES, devices_needed
from hypha_messages.advertisement import RequestWorker
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources

GPU_WEIGHT, CPU_WEIGHT, MEMORY_WEIGHT, STORAGE_WEIGHT = 25.0, 1.0, 0.1, 0.01
"""The weight of a GB of video memory, a core, a GB of memory and a GB of storage, the same on all nodes."""

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
    """The worker's capacity, executors, prices and preferences.

    Attributes:
        minimum: the least that a lease reserves, above zero. Its GPU memory is that of leases that ask for any.
        gpu_device: GB of one GPU. If it is set, leases share no GPU.
    """

    capacity: Resources
    minimum: Resources
    executors: frozenset[ExecutorDescriptor]
    price: float
    floor: float
    offer: Literal["flexible", "whole"] = "whole"
    selection: Literal["profit", "utilization", "affinity"] = "profit"
    preferences: Preferences = Preferences()
    gpu_device: float = 0.0

    def refusal(self, request: RequestWorker, now: float) -> Refusal | None:
        """Return why a request never gets an offer, or None if it may get one once it fits into the free capacity."""
        unsupported = [executor for executor in request.spec.executor if executor not in self.executors]
        if unsupported:
            return Refusal(WorkerReason.EXECUTOR_UNSUPPORTED, f"executor {unsupported[0]} is not supported")
        if not request.spec.executor:
            return Refusal(WorkerReason.NO_EXECUTOR, "it names no executor")
        if request.bid < self.floor:
            return Refusal(WorkerReason.BID_BELOW_FLOOR, f"the bid {request.bid:g} is below the floor {self.floor:g}")
        wanted = request.spec.resources
        if not (wanted.fits_into(self.capacity) and self._raised(wanted).fits_into(self.capacity)):
            return Refusal(WorkerReason.MORE_THAN_CAPACITY, "it asks for more than this worker has")
        if request.timeout.timestamp <= now:
            return Refusal(WorkerReason.REQUEST_EXPIRED, "it has expired")
        return None

    @property
    def least(self) -> Resources:
        """The least that any lease reserves."""
        return self._raised(Resources()) if self.offer == "flexible" else self.capacity

    def terms(self, request: RequestWorker) -> tuple[Resources, float]:
        """Return the resources and the price of an offer for this request."""
        if self.offer == "flexible":
            return self._raised(request.spec.resources), request.bid
        return self.capacity, max(self.price, request.bid)

    def score(self, scheduler: str, request: RequestWorker, free: Resources) -> Score:
        """Rate a request by the selection strategy, for what its lease would reserve. `free` is the free capacity."""
        reserved, _ = self.terms(request)
        profit = request.bid / weigh(reserved)
        if self.selection == "utilization":
            return self._used_share(reserved, free), profit
        if self.selection == "affinity":
            return self._affinity(scheduler, request.spec.executor), profit
        return profit, 0.0

    def _raised(self, wanted: Resources) -> Resources:
        """Raise amounts to the minimum, or to the capacity if that is less, and GPU memory to complete devices.

        An amount of zero means that the scheduler did not specify it. Only zero GPU memory stays zero: no GPU.
        """
        least = {name: min(getattr(self.minimum, name), getattr(self.capacity, name)) for name in RESOURCES}
        if self.gpu_device:
            least["gpu"] = devices_needed(wanted.gpu, self.gpu_device) * self.gpu_device
        if not wanted.gpu:
            least["gpu"] = 0.0
        return Resources(**{name: max(amount, least[name]) for name, amount in wanted})

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


def weigh(resources: Resources) -> float:
    """Return the weighted sum of resources."""
    return (
        GPU_WEIGHT * resources.gpu
        + CPU_WEIGHT * resources.cpu
        + MEMORY_WEIGHT * resources.memory
        + STORAGE_WEIGHT * resources.storage
    )
