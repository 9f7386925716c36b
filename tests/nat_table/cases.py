"""The combinations, and how the table shows them. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Final

from support.nat_lab import KEPT, QUIC, RANDOM, TCP

TRAINERS: Final = ("trainer-0", "trainer-1")
SERVER: Final = "aggregate"
DATA, SCHEDULER = "data", "scheduler"
HIDDEN: Final = {"trainers": TRAINERS, "server": (SERVER,), "all": (*TRAINERS, SERVER, DATA, SCHEDULER)}
"""Which nodes stand behind a NAT, each behind one of its own."""
PORTS: Final = {"kept": KEPT, "random": RANDOM}
GATEWAYS: Final = ("ours", "ours, bulk", "reference")
TRANSPORTS: Final = {"TCP": (TCP,), "QUIC": (QUIC,), "both": (TCP, QUIC)}
WORKERS: Final = {"ours": (), "mixed": (TRAINERS[1],), "reference": (*TRAINERS, SERVER)}
"""Which workers are the reference's."""
HEAD: Final = (
    "| behind NATs | ports | gateway | transport | workers | rounds | seconds per outer step |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True)
class Case:
    """One job. The fields are keys of the tables above."""

    hidden: str
    ports: str
    gateway: str
    transport: str
    workers: str

    @property
    def needs_reference(self) -> bool:
        """Whether any of its nodes is the reference's."""
        return self.gateway == "reference" or bool(WORKERS[self.workers])

    @property
    def completes(self) -> bool:
        """Whether nodes of ours could complete it: bulk data passes between any two of them."""
        return self.gateway == "ours, bulk" or self.ports == "kept" or self.hidden != "all"

    @property
    def words(self) -> set[str]:
        """The words that select it."""
        return {self.hidden, self.ports, self.gateway, self.transport, self.workers + " workers"}


@dataclass(frozen=True)
class Outcome:
    """What became of a job: the seconds of each outer step, and why there are no more of them."""

    steps_s: tuple[float, ...]
    reason: str = ""

    def is_expected(self, case: Case) -> bool:
        """Whether it is what this project promises. It promises nothing for the reference's workers."""
        return bool(WORKERS[case.workers]) or case.completes == (not self.reason)


def cases() -> Iterator[Case]:
    """Yield all combinations. A gateway that relays bulk data is of use only where NATs choose random ports."""
    for case in map(Case, *zip(*product(HIDDEN, PORTS, GATEWAYS, TRANSPORTS, WORKERS), strict=True)):
        if case.gateway != "ours, bulk" or case.ports == "random":
            yield case


def line(case: Case, outcome: Outcome) -> str:
    """Return a line of the table."""
    seconds = ", ".join(f"{step_s:.2f}" for step_s in outcome.steps_s)
    found = "; ".join(filter(None, (seconds, outcome.reason)))
    cells = (case.hidden, case.ports, case.gateway, case.transport, case.workers, str(len(outcome.steps_s)), found)
    return f"| {' | '.join(cells)} |"
