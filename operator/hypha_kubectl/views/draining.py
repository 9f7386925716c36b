"""How far a worker is with draining. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.object_status import find_condition, is_ended, is_open
from hypha_contracts.text import count

_GITOPS: Final = ("argocd.argoproj.io/tracking-id", "kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name")


@dataclass(frozen=True)
class Left:
    """What a suspended worker still has to do.

    Attributes:
        observed: whether the operator has seen that it is suspended.
        running: jobs of which a part may still run.
        unreported: jobs that have ended and whose scheduler does not know it yet.
        leases: leases without a job.
        reserved: whether the node still reserves something, such as for an offer.
    """

    observed: bool
    running: int
    unreported: int
    leases: int
    reserved: bool

    @property
    def is_nothing(self) -> bool:
        """Whether the worker is drained, as far as operator and node have reported."""
        return self.observed and not (self.running or self.unreported or self.leases or self.reserved)

    def __str__(self) -> str:
        parts = [
            f"{count(self.running, 'job')} {'runs' if self.running == 1 else 'run'}" if self.running else "",
            f"the end of {count(self.unreported, 'job')} is not reported" if self.unreported else "",
            f"{count(self.leases, 'lease')} without a job" if self.leases else "",
        ]
        text = ", ".join(part for part in parts if part)
        if not self.observed:
            return ", ".join(filter(None, ("the operator has not seen it yet", text)))
        return text or ("the node releases what it has reserved" if self.reserved else "nothing is left")


def left_of(worker: Manifest, jobs: Iterable[Manifest]) -> Left:
    """Return what a suspended worker still has to do. What a node says that does not run any more does not count."""
    status, found = worker.get("status") or {}, list(jobs)
    reports = find_condition(worker, "Ready").get("status") == "True"
    node = (status.get("node") or {}) if reports else {}
    return Left(
        observed=(status.get("observedGeneration") or 0) >= (worker["metadata"].get("generation") or 0),
        running=sum(not is_ended(job) for job in found),
        unreported=sum(is_ended(job) and is_open(job) for job in found),
        leases=len(node.get("leases") or ()),
        reserved=any((node.get("allocated") or {}).values()),
    )


def owner_in_git(worker: Manifest) -> str | None:
    """Return the mark of the GitOps controller that may undo a change of the worker, or None."""
    metadata = worker["metadata"]
    marks = {**(metadata.get("labels") or {}), **(metadata.get("annotations") or {})}
    return next((mark for mark in _GITOPS if mark in marks), None)
