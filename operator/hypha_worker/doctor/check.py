"""A check and its result."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from hypha_worker.doctor.worker import Worker, in_thread
from hypha_worker.findings import Finding, Mark

_WORST_FIRST: Final = (Mark.FAILURE, Mark.WARNING, Mark.OK, Mark.SKIPPED)

Run = Callable[[Worker], Awaitable[Iterable[Finding]]]


@dataclass(frozen=True)
class Check:
    """Something about a worker that can be right or wrong.

    Attributes:
        id: stable, for programs.
        question: what it finds out, for people.
        symptom: the trouble for which the worker guide names this check, if it does.
        at_start: whether the node makes it when it starts, too.
        timeout_s: how long it may take.
    """

    id: str
    category: str
    question: str
    run: Run
    symptom: str = ""
    at_start: bool = False
    timeout_s: float = 20.0


@dataclass(frozen=True)
class Result:
    """What a check found."""

    check: Check
    findings: Sequence[Finding]

    @property
    def mark(self) -> Mark:
        """The worst mark of the findings."""
        return worst(finding.mark for finding in self.findings)


def worst(marks: Iterable[Mark]) -> Mark:
    """Return the worst of some marks, or skipped if there are none."""
    found = set(marks)
    return next((mark for mark in _WORST_FIRST if mark in found), Mark.SKIPPED)


def blocking(check: Callable[[Worker], Iterable[Finding]]) -> Run:
    """Return a check that runs a blocking function in a thread, which is abandoned at the timeout."""

    async def run(worker: Worker) -> Iterable[Finding]:
        return await in_thread(lambda: list(check(worker)))

    return run
