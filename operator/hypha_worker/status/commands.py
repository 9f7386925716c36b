"""`hypha-worker status` and `hypha-worker jobs`. They block."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hypha_contracts.text import escaped
from hypha_worker.errors import NodeError
from hypha_worker.status import client, tables
from hypha_worker.status.model import Snapshot

_REFRESH_S: Final = 1.0
_AROUND: Final = 3
"""Lines of the terminal that show no job: the titles, the note below, and the cursor's."""


def show_status(directory: Path, *, as_json: bool) -> None:
    """Print the state of the node in this private directory. NodeError if no node answers there."""
    text = client.fetch(directory)
    if as_json:
        print(text)
        return
    console = _console()
    console.print(Group(*tables.status_lines(client.parse(text), time.time(), _width(console))))


def show_jobs(directory: Path) -> None:
    """Print the jobs of the node in this private directory. NodeError if no node answers there."""
    state, console = client.parse(client.fetch(directory)), _console()
    console.print(Group(*_jobs(state, _width(console), len(state.jobs))))


def watch_jobs(directory: Path) -> None:
    """Show the jobs live until interrupted. Without a terminal, print a line for each change of a job.

    NodeError if no node answers at first. One that ends later may come back.
    """
    states = _states(directory)
    console = _console()
    if not console.is_terminal:
        _print_changes(states)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for state, problem in states:
            lines = _jobs(state, console.width, console.height - _AROUND)
            note = [Text(problem, style="red", no_wrap=True, overflow="ellipsis")] if problem else []
            live.update(Group(*lines, *note), refresh=True)


def _states(directory: Path) -> Iterator[tuple[Snapshot, str]]:
    """Yield the latest state again and again, and why it is old, if it is."""
    state, problem = client.parse(client.fetch(directory)), ""
    while True:
        yield state, problem
        time.sleep(_REFRESH_S)
        try:
            state, problem = client.parse(client.fetch(directory)), ""
        except NodeError as error:
            problem = f"out of date: {escaped(str(error))}"


def _print_changes(states: Iterator[tuple[Snapshot, str]]) -> None:
    printed: dict[str, str] = {}
    reported = ""
    for state, problem in states:
        lines = {job.task_id: tables.job_line(job) for job in state.jobs}
        for task_id, line in lines.items():
            if printed.get(task_id) != line:
                print(line, flush=True)
        if problem not in ("", reported):
            print(problem, file=sys.stderr, flush=True)
        printed, reported = lines, problem


def _jobs(state: Snapshot, width: int | None, most: int) -> list[Text]:
    if not state.jobs:
        return [Text("There are no jobs. Schedulers dispatch them to leases; `hypha-worker status` shows these.")]
    shown = state.jobs[: max(1, most)]
    more = state.jobs_total - len(shown)
    lines = tables.jobs_table(shown, time.time(), width)
    return [*lines, Text(f"and {more} more", style="dim")] if more else lines


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _width(console: Console) -> int | None:
    """Return the width of the terminal. A file or a pipe may be as wide as it needs."""
    return console.width if console.is_terminal else None
