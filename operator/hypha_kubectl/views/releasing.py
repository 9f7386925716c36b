"""Which objects hold finalizers of ours, and what follows if they are removed. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from hypha_contracts.kinds import HYPHA_JOB, WORKER, Kind, Manifest
from hypha_contracts.names import GROUP, WORKER_LABEL
from hypha_contracts.object_status import is_ended, is_open
from hypha_contracts.text import count
from hypha_kubectl.views.operators import Held


@dataclass(frozen=True)
class Holding:
    """An object with finalizers of ours.

    Attributes:
        deleting: whether somebody has deleted it, so that it vanishes without finalizers.
        others: finalizers of others, which stay.
        running: jobs of the worker of which a part may still run.
        unreported: jobs whose scheduler may not know that they end.
    """

    kind: Kind
    namespace: str
    name: str
    version: str
    finalizers: tuple[str, ...]
    others: tuple[str, ...]
    deleting: bool
    running: int
    unreported: int

    def __str__(self) -> str:
        return f"{self.kind.name} {self.namespace}/{self.name}"


def holdings_of(workers: Iterable[Manifest], jobs: Sequence[Manifest], name: str | None) -> list[Holding]:
    """Return the objects of a name, or all, that hold finalizers of ours."""
    objects = [*((WORKER, worker) for worker in workers), *((HYPHA_JOB, job) for job in jobs)]
    found = [
        _holding_of(kind, object_, jobs) for kind, object_ in objects if name in (None, object_["metadata"]["name"])
    ]
    return [holding for holding in found if holding.finalizers]


def _holding_of(kind: Kind, object_: Manifest, jobs: Sequence[Manifest]) -> Holding:
    metadata = object_["metadata"]
    finalizers = metadata.get("finalizers") or []
    own = jobs if kind == WORKER else [object_]
    concerned = [job for job in own if kind == HYPHA_JOB or _belongs(job, object_)]
    return Holding(
        kind=kind,
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=metadata["resourceVersion"],
        finalizers=tuple(name for name in finalizers if name.startswith(f"{GROUP}/")),
        others=tuple(name for name in finalizers if not name.startswith(f"{GROUP}/")),
        deleting="deletionTimestamp" in metadata,
        running=sum(not is_ended(job) for job in concerned),
        unreported=sum(is_open(job) for job in concerned),
    )


def _belongs(job: Manifest, worker: Manifest) -> bool:
    labels, metadata = job["metadata"].get("labels") or {}, worker["metadata"]
    return (job["metadata"]["namespace"], labels.get(WORKER_LABEL)) == (metadata["namespace"], metadata["name"])


def consequence(holding: Holding) -> str:
    """Return what follows if the finalizers of an object are removed."""
    if holding.deleting:
        text = "It is deleted then, and the cluster deletes its pods and other objects"
    else:
        text = "It stays, and whoever deletes it later is not waited for"
    if holding.unreported:
        text += f"; the schedulers of {count(holding.unreported, 'job')} may not learn that they end"
    return f"{text}."


def living(leases: Iterable[Held | None], now: datetime) -> list[Held]:
    """Return the Leases whose holder lives, and may remove the finalizers itself."""
    return [held for held in leases if held is not None and held.is_current(now)]
