"""A job is run for a line of the laboratory's table."""

import pytest

from nat_table.cases import Case, Outcome, cases, line
from nat_table.job import ROUNDS, run
from support.nat_lab import missing


def test_a_job_of_nodes_behind_nats_that_keep_ports_completes_over_both_transports() -> None:
    if reason := missing():
        pytest.skip(f"no laboratory: {reason}")
    case = Case("all", "kept", "ours", "both", "ours")
    outcome = run(case)
    assert len(outcome.steps_s) == ROUNDS, outcome
    assert outcome.is_expected(case)


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
