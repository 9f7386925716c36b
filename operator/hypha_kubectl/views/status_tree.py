"""The tree of `kubectl hypha status`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from hypha_contracts.durations import short_duration
from hypha_contracts.reach import DESCRIPTIONS
from hypha_contracts.text import count, number, short_peer
from hypha_kubectl.views.jobs import PHASES, Job
from hypha_kubectl.views.problems import Problem
from hypha_kubectl.views.shown import STYLES, age, job_age, progress
from hypha_kubectl.views.workers import Lease, Worker

MAX_TREES: Final = 8
"""Of more workers, most are shown in a line each."""
MAX_ENDED: Final = 5
"""How many ended jobs of a worker are shown."""
_GUIDE: Final = "bright_black"
_LABEL_WIDTH: Final = 9


def render(workers: Sequence[Worker], now: datetime) -> RenderableType:
    """Return the trees of workers, and a summary if there are several.

    Of many workers, it is a table with a line for each, and the trees of those that make no offers against their will.
    """
    if len(workers) <= MAX_TREES:
        trees = [_worker(worker, now) for worker in workers]
        return Group(*trees, *([_summary(workers)] if len(workers) > 1 else []))
    lacking = [worker for worker in workers if not worker.offers and not worker.is_suspended]
    more = Text("`kubectl hypha status WORKER` shows one in full.", style="dim")
    return Group(_overview(workers), *(_worker(worker, now) for worker in lacking), _summary(workers), more)


def _overview(workers: Sequence[Worker]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("WORKER", "STATE"):
        table.add_column(title)
    for title in ("JOBS", "LEASED", "EARNED"):
        table.add_column(title, justify="right")
    for worker in workers:
        leased = max((amount.used / amount.total for amount in worker.amounts), default=0.0)
        table.add_row(
            Text(f"{worker.namespace}/{worker.name}"),
            Text(_readiness(worker), _style(worker)),
            str(sum(not job.ended for job in worker.jobs)),
            f"{leased:.0%}",
            number(worker.earnings.ended + worker.earnings.running),
        )
    return table


def _summary(workers: Sequence[Worker]) -> Text:
    jobs = Counter(job.phase for worker in workers for job in worker.jobs if not job.ended)
    offering = sum(worker.offers for worker in workers)
    earned = sum(worker.earnings.ended + worker.earnings.running for worker in workers)
    phases = ", ".join(f"{jobs[phase]} {phase.lower()}" for phase in PHASES if jobs[phase]) or "none"
    offer = "offers" if offering == 1 else "offer"
    text = f"{count(len(workers), 'worker')}, {offering} of them {offer}; jobs: {phases}; earned {number(earned)}"
    return Text(text, style="bold")


def _worker(worker: Worker, now: datetime) -> Tree:
    title = Text.assemble(
        (f"{worker.namespace}/{worker.name}", "bold"),
        "  ",
        (_readiness(worker), _style(worker)),
        (f"  {age(worker.created, now)}", "dim"),
        (f"  {short_peer(worker.peer_id)}" if worker.peer_id else "", "dim"),
    )
    tree = Tree(title, guide_style=_GUIDE)
    for line in _facts(worker):
        tree.add(line)
    if worker.leases:
        branch = tree.add(f"{count(len(worker.leases), 'lease')} without a job")
        for lease in worker.leases:
            branch.add(_lease(lease))
    if worker.jobs:
        _add_jobs(tree, worker.jobs, now)
    return tree


def _style(worker: Worker) -> str:
    return "red" if worker.ready is False else "green" if worker.offers else "yellow"


def _readiness(worker: Worker) -> str:
    state = {True: "Ready", False: "not ready", None: "unknown"}[worker.ready]
    return f"{state}: {worker.reason}"


def _facts(worker: Worker) -> Iterator[RenderableType]:
    if worker.offers:
        full = "; all of it is leased now" if worker.is_full else ""
        terms = f"asks {number(worker.price)}, from a bid of {number(worker.floor)}, {worker.strategy}{full}"
        yield _line("offers", terms, "green")
    for obstacle in worker.obstacles:
        yield _problem("no offers", obstacle, "red" if worker.ready is False else "yellow")
    for warning in worker.warnings:
        yield _problem("warning", warning, "yellow")
    if worker.peer_id:
        yield _network(worker)
    if worker.requests.considered or worker.requests.refused:
        requests = worker.requests
        yield _line(
            "requests", f"{requests.considered} of the last {requests.considered + requests.refused} considered"
        )
        if requests.problem:
            yield _problem("refused", requests.problem, "yellow")
    if worker.amounts:
        yield _line("used", _used(worker))
    earned = worker.earnings
    if earned.leases or earned.running:
        parts = []
        if earned.leases:
            leases = f"{count(earned.leases, 'ended lease')} in {short_duration(earned.leased_s)}"
            parts.append(f"{number(earned.ended)} by {leases}")
        if earned.running:
            parts.append(f"{number(earned.running)} by the leases of now")
        yield _line("earned", ", ".join(parts))


def _network(worker: Worker) -> RenderableType:
    ways = [*worker.addresses]
    if worker.circuits:
        ways.append("through gateways")
    elsewise = f"listens at {', '.join(worker.listening)}" if worker.listening else "peers cannot reach it yet"
    reached = f"reached {', '.join(ways)}" if ways else elsewise
    if worker.reach is not None:
        reached += f"; peers reach it {DESCRIPTIONS[worker.reach]}"
    expires = f"; certificate until {worker.expires:%Y-%m-%d}" if worker.expires else ""
    style = "" if worker.gateways else "red"
    return _line("network", f"{count(len(worker.gateways), 'gateway')}, {reached}{expires}", style)


def _used(worker: Worker) -> str:
    parts = []
    for amount in worker.amounts:
        limited = f", now at most {number(amount.limit)}" if amount.limit < amount.total else ""
        parts.append(f"{amount.resource} {number(amount.used)} of {number(amount.total)} {amount.unit}{limited}")
    return " · ".join(parts)


def _lease(lease: Lease) -> Text:
    held = f"held {short_duration(lease.leased_s)} by {short_peer(lease.scheduler)} for {', '.join(lease.executors)}"
    return Text(f"{held}, price {number(lease.price)}, earned {number(lease.earned)}")


def _add_jobs(tree: Tree, jobs: Sequence[Job], now: datetime) -> None:
    phases = Counter(job.phase for job in jobs)
    summary = ", ".join(f"{phases[phase]} {phase.lower()}" for phase in PHASES if phases[phase])
    branch = tree.add(f"{count(len(jobs), 'job')}: {summary}")
    ended = [job for job in jobs if job.ended]
    for job in [*(job for job in jobs if not job.ended), *ended[:MAX_ENDED]]:
        leaf = branch.add(_job(job, now))
        if job.problem:
            leaf.add(_problem("why", job.problem, STYLES.get(job.phase, "yellow")))
    if len(ended) > MAX_ENDED:
        branch.add(Text(f"and {len(ended) - MAX_ENDED} more that ended; see `kubectl hypha jobs`", style="dim"))


def _job(job: Job, now: datetime) -> Text:
    price = f"price {number(job.price)}, earned {number(job.earned)}" if job.price else ""
    details = [part for part in (progress(job, now), _lease_of(job, now), price) if part]
    return Text.assemble(
        (f"{job.phase} ", STYLES.get(job.phase, "")),
        (job.short_name, "bold"),
        f" {job.executor} {job_age(job, now)}",
        ("\n" + ", ".join(details) if details else "", "dim"),
    )


def _lease_of(job: Job, now: datetime) -> str:
    if job.ended or job.lease_ends is None:
        return ""
    left_s = (job.lease_ends - now).total_seconds()
    return f"lease ends in {short_duration(left_s)}" if left_s > 0 else f"lease over for {short_duration(-left_s)}"


def _line(label: str, text: str, style: str = "", remedy: str = "") -> RenderableType:
    """Return a fact after its label. Lines that do not fit go on below the text."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=_LABEL_WIDTH, style="dim")
    grid.add_column()
    grid.add_row(Text(label), Text(text, style))
    if remedy:
        grid.add_row("", Text(f"-> {remedy}"))
    return grid


def _problem(label: str, problem: Problem, style: str) -> RenderableType:
    parts = [part for part in (problem.reason, problem.message) if part and part != label]
    return _line(label, ": ".join(parts), style, problem.remedy)
