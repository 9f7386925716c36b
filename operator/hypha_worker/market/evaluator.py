"""Which requests this worker wants, and in which order. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hypha_contracts.reasons import WorkerReason
from hypha_contracts.units import RESOURCES, devices_needed
from hypha_messages.advertisement import RequestWorker
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources

GPU_WEIGHT, CPU_WEIGHT, MEMORY_WEIGHT, STORAGE_WEIGHT = 25.0, 1.0, 0.1, 0.01
"""What a GB of video memory, a core, a GB of memory and a GB of storage count."""

_LEAST_WEIGHT = 1e-9

Score = tuple[float, float]
"""Larger is better; the second part decides between equals."""


class Refusal(NamedTuple):
    """Why the node never answers a request: a reason for programs and a message for people."""

    reason: WorkerReason
    message: str


@dataclass(frozen=True)
class Preferences:
    """For the strategy affinity: what a scheduler (by peer id) or an executor ("class/name" or "class") is worth."""

    schedulers: Mapping[str, float] = field(default_factory=dict)
    executors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """What the worker supports, asks for and prefers; of devices with `gpu_device` GB no two leases have the same."""

    capacity: Resources
    executors: frozenset[ExecutorDescriptor]
    price: float
    floor: float
    offer: Literal["flexible", "whole"] = "whole"
    selection: Literal["profit", "utilization", "affinity"] = "profit"
    preferences: Preferences = Preferences()
    gpu_device: float = 0.0

    def refusal(self, request: RequestWorker, now: float) -> Refusal | None:
        """Say why a request is never answered; None if it may be, once there is room."""
        unsupported = [executor for executor in request.spec.executor if executor not in self.executors]
        if unsupported:
            return Refusal(WorkerReason.EXECUTOR_UNSUPPORTED, f"executor {unsupported[0]} is not supported")
        if not request.spec.executor:
            return Refusal(WorkerReason.NO_EXECUTOR, "it names no executor")
        if request.bid < self.floor:
            return Refusal(WorkerReason.BID_BELOW_FLOOR, f"the bid {request.bid:g} is below the floor {self.floor:g}")
        wanted = request.spec.resources
        if not (wanted.fits_into(self.capacity) and self._with_whole_devices(wanted).fits_into(self.capacity)):
            return Refusal(WorkerReason.MORE_THAN_CAPACITY, "it asks for more than this worker has")
        if request.timeout.timestamp <= now:
            return Refusal(WorkerReason.REQUEST_EXPIRED, "it has expired")
        return None

    def terms(self, request: RequestWorker) -> tuple[Resources, float]:
        """Return the resources and the price that an offer for this request names."""
        if self.offer == "flexible":
            return self._with_whole_devices(request.spec.resources), request.bid
        return self.capacity, max(self.price, request.bid)

    def score(self, scheduler: str, request: RequestWorker, free: Resources) -> Score:
        """Rate a request by the selection strategy, given what is free."""
        wanted = self._with_whole_devices(request.spec.resources)
        profit = request.bid / max(weigh(wanted), _LEAST_WEIGHT)
        if self.selection == "utilization":
            return self._fill(wanted, free), profit
        if self.selection == "affinity":
            return self._affinity(scheduler, request.spec.executor), profit
        return profit, 0.0

    def _with_whole_devices(self, wanted: Resources) -> Resources:
        if not self.gpu_device:
            return wanted
        gpu = devices_needed(wanted.gpu, self.gpu_device) * self.gpu_device
        return wanted.model_copy(update={"gpu": max(gpu, wanted.gpu)})

    def _fill(self, wanted: Resources, free: Resources) -> float:
        """The mean share of what is free that a request would use; what does not fit comes last."""
        if not wanted.fits_into(free):
            return -1.0
        shares = [getattr(wanted, name) / getattr(free, name) for name in RESOURCES if getattr(free, name) > 0]
        return sum(shares) / len(shares) if shares else 0.0

    def _affinity(self, scheduler: str, executors: Iterable[ExecutorDescriptor]) -> float:
        wanted = self.preferences.executors
        best = max((wanted.get(str(e), wanted.get(e.class_, 0.0)) for e in executors), default=0.0)
        return self.preferences.schedulers.get(scheduler, 0.0) + best


def weigh(resources: Resources) -> float:
    """Return one figure for resources, by the network's common weights."""
    return (
        GPU_WEIGHT * resources.gpu
        + CPU_WEIGHT * resources.cpu
        + MEMORY_WEIGHT * resources.memory
        + STORAGE_WEIGHT * resources.storage
    )
