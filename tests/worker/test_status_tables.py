"""The state of a node in a terminal."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.busy_node import AGGREGATE, BusyNode, open_networks, scheduler_ids
from hypha_worker.status import tables
from hypha_worker.status.model import Snapshot

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "trio"


@pytest.fixture(scope="module")
async def state() -> AsyncIterator[Snapshot]:
    """The state of a node with jobs of several kinds."""
    async with open_networks() as (network, _):
        schedulers = scheduler_ids(3)
        node = BusyNode(network, schedulers, 8)
        node.job(0, seconds=300, ended_s=50, failure="the executor ended: exit status 1")
        node.job(1, seconds=400)
        node.job(2, AGGREGATE, seconds=200)
        node.lease(3, seconds=90)
        node.ask(schedulers[0], 20)
        yield node.board.snapshot()


def text(state: Snapshot, width: int | None = None, **node: Any) -> str:
    changed = state.model_copy(update={"node": state.node.model_copy(update=node)})
    return "\n".join(line.plain for line in tables.status_lines(changed, state.at, width))


async def test_one_look_tells_who_the_node_is_and_what_it_does(state: Snapshot) -> None:
    shown = text(state)
    assert f"Hypha worker {state.node.peer_id} ready" in shown
    assert "offers        aggregate/aggregate, train/diloco-transformer for bids of 100 or more" in shown
    assert "peers reach it directly, unless a firewall keeps them out" in shown
    assert "leased        cpu 3 of 10, memory 12 of 40, storage 60 of 200" in shown
    assert "more in each second" in shown
    for title in ("jobs", "leases", "requests", "peers"):
        assert f"\n{title}\n" in shown
    assert "no offer" in shown
    assert "the bid 20 is below the floor 100" in shown


async def test_what_is_wrong_is_said_first(state: Snapshot) -> None:
    shown = text(state, lack="no gateway is connected", silence="the worker is suspended")
    assert "not ready: no gateway is connected" in shown.splitlines()[0]
    assert "offers        none: the worker is suspended" in shown


async def test_jobs_show_phase_progress_and_why_they_failed(state: Snapshot) -> None:
    titles, *lines = (line.plain for line in tables.jobs_table(state.jobs, state.at, None))
    assert titles.split() == [
        *("JOB", "EXECUTOR", "PHASE", "AGE", "ROUND"),
        *("LOSS", "SAMPLES/S", "ROUNDS/H", "LEASE", "SCHEDULER", "REASON"),
    ]
    aggregate, train, failed = lines
    assert aggregate.split()[1:5] == ["aggregate/aggregate", "running", "3m20s", "5"]
    assert train.split()[1:5] == ["train/diloco-transformer", "running", "6m40s", "10"]
    assert failed.endswith("the executor ended: exit status 1")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
async def test_no_line_of_a_table_is_wider_than_the_terminal(state: Snapshot, width: int) -> None:
    lines = tables.jobs_table(state.jobs, state.at, width)
    assert max(len(line.plain) for line in lines) <= width
    assert "PHASE" in lines[0].plain


async def test_a_narrow_terminal_shows_phase_and_loss_rather_than_the_scheduler(state: Snapshot) -> None:
    titles = tables.jobs_table(state.jobs, state.at, 45)[0].plain.split()
    assert titles[:2] == ["JOB", "PHASE"]
    assert "LOSS" in titles
    assert "SCHEDULER" not in titles


async def test_a_column_without_a_value_takes_no_place(state: Snapshot) -> None:
    aggregates = [job for job in state.jobs if job.executor.startswith("aggregate")]
    titles = tables.jobs_table(aggregates, state.at, None)[0].plain
    assert "LOSS" not in titles
    assert "REASON" not in titles


async def test_long_lists_are_cut_and_the_rest_is_counted(state: Snapshot) -> None:
    many = state.model_copy(update={"leases": state.leases * 50, "leases_total": 300})
    shown = text(many)
    assert f"leases ({tables.MAX_LEASES} of 300; --json has more)" in shown
    assert len([line for line in shown.splitlines() if " held " in line]) == tables.MAX_LEASES


async def test_a_line_about_a_job_changes_only_if_the_job_goes_on(state: Snapshot) -> None:
    job = next(job for job in state.jobs if "loss" in job.metrics)
    later = job.model_copy(update={"samples": job.samples + 8, "deadline": 0.0})
    further = job.model_copy(update={"round": 11})
    assert tables.job_line(job) == tables.job_line(later) != tables.job_line(further)
    assert "round 11 loss" in tables.job_line(further)
