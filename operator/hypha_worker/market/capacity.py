"""What a worker can lease, and on which of its nodes each lease fits. Pure functions.

The placement is a model: the cluster's scheduler chooses the real nodes. As pods do not move, neither does a placed
lease.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import fsum
from typing import Final

from hypha_contracts.units import RESOURCES
from hypha_messages.types import Resources

GPU_WEIGHT, CPU_WEIGHT, MEMORY_WEIGHT, STORAGE_WEIGHT = 25.0, 1.0, 0.1, 0.01
"""The weight of a GB of video memory, a core, a GB of memory and a GB of storage, the same on all nodes."""

Slot = tuple[int, int]
"""A node: the position of its kind, and its number among the nodes of that kind."""
_ONLY_NODE: Final = (0, 0)


def weigh(resources: Resources) -> float:
    """Return the weighted sum of resources."""
    return (
        GPU_WEIGHT * resources.gpu
        + CPU_WEIGHT * resources.cpu
        + MEMORY_WEIGHT * resources.memory
        + STORAGE_WEIGHT * resources.storage
    )


def sum_of(amounts: Iterable[Resources]) -> Resources:
    """Return the sum of resources."""
    summands = tuple(amounts)
    return Resources(**{name: fsum(getattr(part, name) for part in summands) for name in RESOURCES})


def least_of(first: Resources, second: Resources | None) -> Resources:
    """Return the lesser amount of each resource. None limits nothing."""
    if second is None:
        return first
    return Resources(**{name: min(amount, getattr(second, name)) for name, amount in first})


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike, and the resources of each."""

    count: int
    each: Resources


@dataclass(frozen=True)
class Capacity:
    """What the leases of a worker may reserve.

    Attributes:
        total: all of them together.
        per_job: one of them; None if it may be all.
        kinds: the nodes that they are on. Without any, the worker counts as one node.
    """

    total: Resources
    per_job: Resources | None = None
    kinds: tuple[NodeKind, ...] = ()

    @cached_property
    def shapes(self) -> tuple[Resources, ...]:
        """The most that one lease may reserve on each kind of node, the smallest first."""
        nodes = (kind.each for kind in self.kinds) if self.kinds else (self.total,)
        return tuple(sorted({least_of(least_of(each, self.total), self.per_job) for each in nodes}, key=weigh))

    @cached_property
    def largest(self) -> Resources:
        """The most of each resource that one lease may reserve, though perhaps not of all at once."""
        return Resources(**{name: max(getattr(shape, name) for shape in self.shapes) for name in RESOURCES})

    def place(self, placed: Iterable[tuple[Slot, Resources]], wanted: Sequence[Resources]) -> list[Slot] | None:
        """Return a node for each of the wanted leases, beside those that are placed. None if they do not all fit.

        The largest lease comes first, and each goes to the node that has least left beside it. So small leases leave
        large nodes and GPUs free. Without kinds of nodes all fit, because the caller compares the sum with the total.
        """
        kinds = self.kinds
        if not kinds:
            return [_ONLY_NODE] * len(wanted)
        on: dict[Slot, list[Resources]] = {}
        for slot, resources in placed:
            on.setdefault(slot, []).append(resources)
        found: dict[int, Slot] = {}
        for index in sorted(range(len(wanted)), key=lambda index: weigh(wanted[index]), reverse=True):
            left = {slot: _left(kinds[slot[0]].each, [*on.get(slot, ()), wanted[index]]) for slot in _open(kinds, on)}
            fitting = [slot for slot, rest in left.items() if rest is not None]
            if not fitting:
                return None
            found[index] = min(fitting, key=lambda slot: weigh(left[slot] or Resources()))
            on.setdefault(found[index], []).append(wanted[index])
        return [found[index] for index in range(len(wanted))]


def _open(kinds: Sequence[NodeKind], on: Iterable[Slot]) -> list[Slot]:
    """Return the nodes to consider: those with leases, and one empty node of each kind."""
    used = set(on)
    empty = []
    for position, kind in enumerate(kinds):
        numbers = (number for number in range(kind.count) if (position, number) not in used)
        empty += [(position, number) for number in islice(numbers, 1)]
    return [*used, *empty]


def _left(each: Resources, leases: Iterable[Resources]) -> Resources | None:
    """Return what a node has left beside its leases, or None if they do not fit."""
    used = sum_of(leases)
    if not used.fits_into(each):
        return None
    return Resources(**{name: max(0.0, amount - getattr(used, name)) for name, amount in each})
