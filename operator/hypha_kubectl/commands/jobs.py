"""`kubectl hypha jobs`."""

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hypha_contracts.kinds import HYPHA_JOB, Manifest
from hypha_kubectl.access.api import Api
from hypha_kubectl.access.mirror import Mirror, following
from hypha_kubectl.commands.selection import place
from hypha_kubectl.views.jobs import Job, in_order, job_of
from hypha_kubectl.views.jobs_table import Layout
from hypha_kubectl.views.shown import SCHEMA_VERSION, plain

_REFRESH_S: Final = 1.0
"""How often the ages are drawn anew if nothing changes."""
_AROUND: Final = 3
"""Lines of the terminal that hold no job: the titles, the note below, and the cursor's."""


def show(api: Api, namespace: str | None, *, as_json: bool) -> None:
    """Print the jobs of a namespace. ApiError."""
    jobs = _views(api.find(HYPHA_JOB, namespace), api.now())
    if as_json:
        print(json.dumps({"schema": SCHEMA_VERSION, "jobs": plain(jobs)}, indent=2, ensure_ascii=False))
    elif not jobs:
        print(f"There are no HyphaJobs in {place(namespace)}. Workers create them for the jobs that they win.")
    else:
        console = Console(highlight=False, soft_wrap=True)
        console.print(Group(*_lines(jobs, api.now(), _width(console), namespaces=namespace is None)))


def watch(api: Api, namespace: str | None) -> None:
    """Show the jobs of a namespace live until interrupted; without a terminal, a line for each change. ApiError."""
    with following(api, HYPHA_JOB, namespace) as mirror:
        if sys.stdout.isatty():
            _draw(api, mirror, namespace)
        else:
            _report_changes(api, mirror, namespace)


def _draw(api: Api, mirror: Mirror, namespace: str | None) -> None:
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(_picture(api, mirror, namespace, console), refresh=True)
            mirror.take(_REFRESH_S)


def _picture(api: Api, mirror: Mirror, namespace: str | None, console: Console) -> RenderableType:
    now = api.now()
    jobs = _views(mirror.objects.values(), now)
    if not jobs:
        return Group(Text(f"There are no HyphaJobs in {place(namespace)} yet."), *_notes(mirror, 0))
    shown = jobs[: max(1, console.height - _AROUND)]
    lines = _lines(shown, now, console.width, namespaces=namespace is None)
    return Group(*lines, *_notes(mirror, len(jobs) - len(shown)))


def _notes(mirror: Mirror, more: int) -> list[Text]:
    notes = [Text(f"and {more} more", style="dim")] if more else []
    if mirror.problem:
        notes.append(Text(f"out of date: {mirror.problem}", style="red", no_wrap=True, overflow="ellipsis"))
    return notes


def _report_changes(api: Api, mirror: Mirror, namespace: str | None) -> None:
    jobs = _views(mirror.objects.values(), api.now())
    layout = Layout(jobs, api.now(), None, namespaces=namespace is None)
    print(layout.header().plain, *(layout.row(job, api.now()).plain for job in jobs), sep="\n", flush=True)
    problem = None
    while True:
        for job in _views(mirror.take(_REFRESH_S), api.now()):
            there = (job.namespace, job.name) in mirror.objects
            print(layout.row(job, api.now()).plain if there else f"{job.name} is deleted", flush=True)
        if mirror.problem and mirror.problem != problem:
            print(f"out of date: {mirror.problem}", file=sys.stderr, flush=True)
        problem = mirror.problem


def _views(manifests: Iterable[Manifest], now: datetime) -> list[Job]:
    return in_order(job_of(manifest, now) for manifest in manifests)


def _lines(jobs: list[Job], now: datetime, width: int | None, *, namespaces: bool) -> list[Text]:
    layout = Layout(jobs, now, width, namespaces=namespaces)
    return [layout.header(), *(layout.row(job, now) for job in jobs)]


def _width(console: Console) -> int | None:
    """Return the width of the terminal. A file or a pipe may be as wide as it needs."""
    return console.width if console.is_terminal else None
