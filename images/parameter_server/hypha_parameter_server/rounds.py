"""Decide which pseudo-gradients make up a round."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from hypha_executor.safetensors import Header, Layout
from hypha_parameter_server.errors import Refused, Untimely


@dataclass(frozen=True)
class Policy:
    """When a round closes without some of its members, and how long a pseudo-gradient may be.

    Attributes:
        deadline_s: Seconds from a round's first pseudo-gradient until a quorum is enough.
        quorum: The fraction of the members that is enough then.
        clip_factor: If set, longer pseudo-gradients are scaled to this multiple of the round's (low) median length.
    """

    deadline_s: float = 600
    quorum: float = 0.5
    clip_factor: float | None = None


@dataclass(frozen=True)
class Contribution:
    """A checked pseudo-gradient. The reference implementation's trainers label neither round nor samples."""

    peer: str
    path: Path
    header: Header
    norm: float
    round: int | None
    samples: int | None


@dataclass(frozen=True)
class Selection:
    """The pseudo-gradients of the round to close now, and those that do not fit."""

    round: int
    chosen: Sequence[Contribution]
    misfits: Sequence[Contribution]


def check_round(label: int | None, expected: int | None) -> None:
    """Refuse a pseudo-gradient of another round. Before the first outer step, `expected` is None and allows any round.

    Raises:
        Untimely: The label is set and differs from the expected round.
    """
    if label is not None and expected is not None and label != expected:
        when = "late" if label < expected else "early"
        raise Untimely(f"is {when}: it is for round {label}, and round {expected} is being collected")


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
    refused: Collection[str],
    members: int,
    *,
    expected: int | None,
    waited_s: float,
    policy: Policy,
) -> Selection | None:
    """Return the round to close now, or None to wait longer.

    A round needs all members until the deadline, and a quorum afterwards. A quorum is also enough once every member has
    sent something, usable or not. Before the first outer step, the majority decides the round's number and layout. In a
    tie, the lower number wins, and the layout that arrived first.

    Args:
        pending: At most one for each peer, in the order of arrival.
        refused: The peers whose last pseudo-gradient for this round was refused.
        members: How many peers send pseudo-gradients.
        expected: The round being collected; None before the first outer step.
        waited_s: Seconds since the first pseudo-gradient of the round.
        policy: Quorum and deadline.
    """
    if not pending:
        return None
    labels = Counter(item.round for item in pending if item.round is not None)
    number = max(sorted(labels), key=labels.__getitem__) if labels else (1 if expected is None else expected)
    labelled = [item for item in pending if item.round in (None, number)]
    groups: list[list[Contribution]] = []
    for item in labelled:
        group = next((group for group in groups if group[0].header.layout == item.header.layout), None)
        if group is None:
            groups.append([item])
        else:
            group.append(item)
    chosen = max(groups, key=len)
    everyone_sent = len({item.peer for item in pending} | set(refused)) >= members
    needed = quorum_of(members, policy) if everyone_sent or waited_s >= policy.deadline_s else members
    if len(chosen) < needed:
        return None
    return Selection(number, chosen, [item for item in pending if item not in chosen])


def quorum_of(members: int, policy: Policy) -> int:
    """Return how many pseudo-gradients are enough after the deadline."""
    return max(1, math.ceil(policy.quorum * members))


def weights(chosen: Sequence[Contribution], policy: Policy) -> list[float]:
    """Return the factor of each pseudo-gradient: its share of the samples, if all label theirs, times its clipping."""
    samples = [item.samples for item in chosen if item.samples is not None]
    if len(samples) == len(chosen) and sum(samples) > 0:
        shares = [count / sum(samples) for count in samples]
    else:
        shares = [1 / len(chosen)] * len(chosen)
    if policy.clip_factor is None:
        return shares
    limit = policy.clip_factor * median_low(item.norm for item in chosen)
    return [share * (limit / item.norm if item.norm > limit else 1) for share, item in zip(shares, chosen, strict=True)]
