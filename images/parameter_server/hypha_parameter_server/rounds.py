"""Decide which pseudo-gradients make up a round, and how much each of them counts.

A member may lie about its samples, its round and its gradient. So nothing that one member sends decides anything alone:
the median bounds what each one adds, and the majority decides the round and the layout.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Final

from hypha_executor.safetensors import Layout
from hypha_parameter_server.arithmetic import PerKind
from hypha_parameter_server.errors import Refused, Untimely

MAX_FIRST_ROUND: Final = 1_000_000
"""The last round that a parameter server may begin with."""
MAX_SAMPLES_FACTOR: Final = 2
"""A member's samples count up to this multiple of the median."""


@dataclass(frozen=True)
class Policy:
    """When a round closes without some of its members, and how long a pseudo-gradient may be.

    Attributes:
        deadline_s: Seconds from a round's first pseudo-gradient until a quorum is enough.
        quorum: The fraction of the members that is enough then.
        clip_factor: Longer pseudo-gradients are scaled to this multiple of the round's (low) median length.
    """

    deadline_s: float = 600
    quorum: float = 0.5
    clip_factor: float = 2


@dataclass(frozen=True)
class Contribution:
    """A checked pseudo-gradient. The reference implementation's trainers label neither round nor samples.

    It holds a digest of its layout in place of its header, which may be as large as its sender likes.
    """

    peer: str
    path: Path
    layout: bytes
    length: PerKind
    round: int | None
    samples: int | None


@dataclass(frozen=True)
class Selection:
    """The pseudo-gradients of the round to close now, and those that do not fit."""

    round: int
    chosen: Sequence[Contribution]
    misfits: Sequence[Contribution]


def check_round(label: int | None, expected: int | None, *, owed: bool) -> None:
    """Refuse a pseudo-gradient of another round, because it starts from other weights than those of this round.

    Args:
        label: The round in its metadata.
        expected: The round being collected; None before the first outer step.
        owed: Whether its sender sent nothing for the round before. Without a label, this is taken for that one.

    Raises:
        Refused: There is no such round to begin with.
        Untimely: It is for another round.
    """
    if label is None:
        if owed:
            raise Untimely("late", "is late: it names no round, and its sender missed the last one")
        return
    if expected is None and not 1 <= label <= MAX_FIRST_ROUND:
        raise Refused(f"is for round {label}, and a job begins with a round from 1 to {MAX_FIRST_ROUND}")
    if expected is not None and label != expected:
        when = "late" if label < expected else "early"
        raise Untimely(when, f"is {when}: it is for round {label}, and round {expected} is being collected")


def check_job(label: str | None, job_id: str) -> None:
    """Refuse a pseudo-gradient of another job.

    Raises:
        Refused: The label is set and names another job.
    """
    if label is not None and label.lower() != job_id.lower():
        raise Refused(f"is for another job, {label[:40]!r}")


def check_layout(found: Layout, expected: Layout) -> None:
    """Refuse tensors that differ from those of earlier rounds.

    Raises:
        Refused: A name, a shape or a dtype differs.
    """
    for name in expected.keys() - found.keys():
        raise Refused(f"lacks tensor {name[:100]!r}")
    for name in found.keys() - expected.keys():
        raise Refused(f"has a tensor {name[:100]!r}, which earlier rounds did not have")
    for name, tensor in expected.items():
        if found[name] != tensor:
            raise Refused(f"has tensor {name[:100]!r} as {found[name]}; earlier rounds had {tensor}")


def select(
    pending: Collection[Contribution],
    refused: Set[str],
    members: Set[str],
    awaited: Set[str],
    *,
    expected: int | None,
    waited_s: float,
    policy: Policy,
) -> Selection | None:
    """Return the round to close now, or None to wait longer.

    A round closes with a quorum, once every awaited member has sent something, usable or not, or after the deadline.
    Before the first outer step, the majority decides the round's number and layout. In a tie, the lower number wins,
    and the layout that arrived first. A pseudo-gradient without a label votes for the round being collected (at first
    1) and fits every round.

    Args:
        pending: At most one for each peer, in the order of arrival.
        refused: The peers whose last pseudo-gradient for this round was refused.
        members: The peers that send pseudo-gradients.
        awaited: The members for which a round waits until the deadline.
        expected: The round being collected; None before the first outer step.
        waited_s: Seconds since the first pseudo-gradient of the round.
        policy: Quorum and deadline.
    """
    sent = {item.peer for item in pending} | refused
    if not pending or (not awaited <= sent and waited_s < policy.deadline_s):
        return None
    votes = Counter(item.round or expected or 1 for item in pending)
    number = max(sorted(votes), key=votes.__getitem__)
    layouts = Counter(item.layout for item in pending if item.round in (None, number))
    layout = max(layouts, key=layouts.__getitem__)
    chosen = [item for item in pending if item.round in (None, number) and item.layout == layout]
    if len(chosen) < quorum_of(len(members), policy):
        return None
    return Selection(number, chosen, [item for item in pending if item not in chosen])


def quorum_of(members: int, policy: Policy) -> int:
    """Return how many pseudo-gradients are enough."""
    return max(1, math.ceil(policy.quorum * members))


class Attendance:
    """The members for which rounds wait.

    A member that misses the deadline of a round is not awaited in the next one, after its second miss in the next
    three, then seven, and so on. So a member that is always late costs a job a few deadlines, not one for each round.
    It takes part in every round for which it is in time.

    Attributes:
        owing: The members that sent nothing during the last round. A trainer sends one pseudo-gradient for each round,
            so theirs is still to come.
    """

    def __init__(self, members: Set[str]) -> None:
        self.owing: Set[str] = frozenset()
        self._members = members
        self._misses: Counter[str] = Counter()
        self._excused: Counter[str] = Counter()

    @property
    def awaited(self) -> Set[str]:
        """The members for which the current round waits."""
        return {peer for peer in self._members if not self._excused[peer]}

    def close_round(self, sent: Set[str], late: Set[str]) -> None:
        """Record who has sent something for the round that closes, and who for an earlier one."""
        self.owing = self._members - sent - late
        for peer in self._members:
            if self._excused[peer]:
                self._excused[peer] -= 1
            elif peer not in sent:
                self._misses[peer] += 1
                self._excused[peer] = 2 ** self._misses[peer] - 1


def weights(chosen: Sequence[Contribution], policy: Policy) -> list[PerKind]:
    """Return the factors of each pseudo-gradient: its share of the samples, if all label theirs, times its clipping.

    A member's samples count up to `MAX_SAMPLES_FACTOR` times the median, and its pseudo-gradient up to `clip_factor`
    times the median length. Zeros count for neither median. Of two members, the smaller one is the median.
    """
    samples = [item.samples for item in chosen if item.samples is not None]
    if len(samples) < len(chosen) or not any(samples):
        samples = [1] * len(chosen)
    most = MAX_SAMPLES_FACTOR * median_low(count for count in samples if count)
    counts = [min(count, most) for count in samples]
    total = sum(counts)
    clipping = [
        _clipping(lengths, policy.clip_factor) for lengths in zip(*(item.length for item in chosen), strict=True)
    ]
    return [
        PerKind(*(count / total * factor for factor in factors))
        for count, *factors in zip(counts, *clipping, strict=True)
    ]


def _clipping(lengths: Sequence[float], factor: float) -> list[float]:
    longest = factor * median_low([length for length in lengths if length] or [0.0])
    return [longest / length if length > longest else 1.0 for length in lengths]
