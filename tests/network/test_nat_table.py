"""A job is run for a line of the laboratory's table."""

from pathlib import Path

import pytest
import trio

from nat_table import links
from nat_table.cases import Case, Outcome, cases, line
from nat_table.job import ROUNDS, run
from support.certs import Pki
from support.nat_lab import QUIC, laboratory, missing

NAMESPACE = Path("/proc/thread-self/ns/net")

pytestmark = pytest.mark.anyio


def test_a_job_of_nodes_behind_nats_that_keep_ports_completes_over_both_transports() -> None:
    if reason := missing():
        pytest.skip(f"no laboratory: {reason}")
    case = Case("all", "kept", "ours", "both", "ours")
    outcome = run(case)
    assert len(outcome.steps_s) == ROUNDS, outcome
    assert outcome.is_expected(case)
    assert trio.run(trio.to_thread.run_sync, NAMESPACE.readlink) == NAMESPACE.readlink(), "a thread is left in a place"


def test_every_combination_is_a_line_of_its_own() -> None:
    lines = [line(case, Outcome((1.5,))) for case in cases()]
    assert len(lines) == len(set(lines)) == 3 * (2 + 3) * 3 * 3
    assert lines[0] == "| trainers | kept | ours | TCP | ours | 1 | 1.50 |"


@pytest.mark.parametrize(
    ("case", "outcome", "expected"),
    [
        (Case("all", "kept", "ours", "TCP", "ours"), Outcome((1.0,) * 3), True),
        (Case("all", "kept", "ours", "TCP", "ours"), Outcome((1.0,), "stalled"), False),
        (Case("all", "random", "reference", "TCP", "ours"), Outcome((), "only a relay"), True),
        (Case("all", "random", "ours, bulk", "TCP", "ours"), Outcome((), "only a relay"), False),
        (Case("all", "kept", "ours", "TCP", "reference"), Outcome((), "stalled"), True),
    ],
)
def test_a_job_of_our_workers_must_complete_unless_no_way_leads_from_one_to_the_other(
    case: Case, outcome: Outcome, expected: bool
) -> None:
    assert outcome.is_expected(case) is expected


async def test_pushes_over_a_slow_path_are_measured(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(f"no laboratory: {reason}")
    path = links.SlowPath(mbit_per_s=80, round_trip_s=0.02)
    with laboratory(Pki(), tmp_path) as lab:
        rates = [await links.of_nodes(lab, path, QUIC, 0.5), await links.of_kernel(lab, path, "reno", 0.5)]
    assert all(1e6 / 8 < rate < 80e6 / 8 for rate in rates), rates
