"""A check of a worker."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from hypha_contracts.findings import Finding, Subject
from hypha_worker.doctor.worker import Worker, in_thread

Run = Callable[[Worker], Awaitable[Iterable[Finding]]]


@dataclass(frozen=True)
class Check(Subject):
    """Something about a worker that can be right or wrong.

    Attributes:
        symptom: the trouble for which the worker guide names this check, if it does.
        at_start: whether the node makes it when it starts, too.
        timeout_s: how long it may take.
    """

    run: Run
    symptom: str = ""
    at_start: bool = False
    timeout_s: float = 20.0


def blocking(check: Callable[[Worker], Iterable[Finding]]) -> Run:
    """Return a check that runs a blocking function in a thread, which is abandoned at the timeout."""

    async def run(worker: Worker) -> Iterable[Finding]:
        return await in_thread(lambda: list(check(worker)))

    return run
