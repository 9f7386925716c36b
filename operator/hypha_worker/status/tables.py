"""The state of a node as lines for a terminal. Pure functions. Everything fits into a width, if one is given."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from rich.text import Text

from hypha_contracts.durations import short_duration
from hypha_contracts.text import number, short_peer
from hypha_messages.types import Resources
from hypha_worker.status.model import JobState, LeaseState, PeerState, RequestState, Snapshot

MAX_LEASES: Final = 20
MAX_REQUESTS: Final = 8
MAX_PEERS: Final = 8
_GAP: Final = "  "
_LABEL_CHARS: Final = 13
_STYLES: Final = {
    **dict.fromkeys(("running", "held", "accepted", "direct"), "green"),
    **dict.fromkeys(("starting", "offered", "waiting", "ending", "lapsed", "relayed"), "yellow"),
    **dict.fromkeys(("failed", "none", "refused", "undelivered", "passed"), "red"),
}
_ANSWERS: Final = {
    "offered": "offered",
    "accepted": "accepted",
    "lapsed": "not taken in time",
    "undelivered": "could not be delivered",
    "waiting": "waits",
    "passed": "no offer",
    "refused": "no offer",
    "none": "no offer",
}
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Column(Generic[_Item]):
    """A column. In a narrow terminal, those with the highest `rank` are left out first."""

    title: str
    rank: int
    cell: Callable[[_Item], str]
    right: bool = False


def status_lines(state: Snapshot, now: float, width: int | None) -> list[Text]:
    """Return the node, its jobs, leases, requests and peers. `now` is seconds since the epoch."""
    parts: list[tuple[str, int, int, list[Text]]] = [
        ("jobs", len(state.jobs), state.jobs_total, jobs_table(state.jobs, now, width)),
        ("leases", MAX_LEASES, state.leases_total, _leases(state.leases[:MAX_LEASES], now, width)),
        ("requests", MAX_REQUESTS, len(state.requests), _requests(state.requests[:MAX_REQUESTS], now, width)),
        ("peers", MAX_PEERS, state.peers_total, _peers(state.peers[:MAX_PEERS], width)),
    ]
    lines = list(_summary(state, now))
    for title, shown, total, table in parts:
        if total:
            of_all = f" ({shown} of {total}; --json has more)" if shown < total else ""
            lines += [Text(), Text(f"{title}{of_all}", style="bold"), *table]
    return lines


def _summary(state: Snapshot, now: float) -> Iterator[Text]:
    node, network, earnings = state.node, state.network, state.earnings
    ready = ("ready", "bold green") if node.lack is None else (f"not ready: {node.lack}", "bold red")
    yield Text.assemble("Hypha worker ", (node.peer_id, "bold"), " ", ready)
    yield _fact("version", f"{node.version}, runtime {node.runtime}, up {short_duration(now - node.since)}")
    least = node.price if node.strategy == "whole" else node.floor
    terms = f"{'' if node.strategy == 'whole' else 'bids of '}{number(least)} or more"
    offers = f"{', '.join(node.executors)} for {terms}"
    yield _fact("offers", f"none: {node.silence}" if node.silence else offers)
    gateways = ", ".join(map(short_peer, network.gateways)) or "none connected"
    yield _fact("gateways", gateways)
    yield _fact("peers reach it", network.reached)
    if network.remedy:
        yield _fact("", network.remedy)
    left_s = node.certificate_until - now
    yield _fact("certificate", node.certificate_problem or f"valid for {short_duration(left_s)}")
    leased = (f"{one.name} {number(one.leased)} of {number(one.total)}" for one in state.resources if one.total)
    yield _fact("leased", ", ".join(leased))
    growing = f", {number(earnings.per_s)} more in each second" if earnings.per_s else ""
    yield _fact("earned", f"{number(earnings.earned + earnings.accruing)} in the network's unit{growing}")


def _fact(label: str, text: str) -> Text:
    return Text.assemble((f"{label:<{_LABEL_CHARS}} ", "dim"), text)


def jobs_table(jobs: Sequence[JobState], now: float, width: int | None) -> list[Text]:
    """Return the titles and a line for each job."""
    columns: tuple[_Column[JobState], ...] = (
        _Column("JOB", 0, lambda job: job.task_id[:8]),
        _Column("EXECUTOR", 7, lambda job: job.executor),
        _Column("PHASE", 0, lambda job: job.phase),
        _Column("AGE", 1, lambda job: short_duration((job.ended or now) - job.began), right=True),
        _Column("ROUND", 3, lambda job: _optional(job.round), right=True),
        _Column("LOSS", 2, lambda job: _optional(job.metrics.get("loss")), right=True),
        _Column("SAMPLES/S", 5, lambda job: _optional(job.samples_per_second), right=True),
        _Column("ROUNDS/H", 9, lambda job: _optional(job.rounds_per_hour), right=True),
        _Column("LEFT", 10, lambda job: "" if job.estimated_end is None else _left(job.estimated_end, now), right=True),
        _Column("LEASE", 4, lambda job: "" if job.deadline is None else _left(job.deadline, now), right=True),
        _Column("SCHEDULER", 6, lambda job: short_peer(job.scheduler)),
        _Column("REASON", 8, lambda job: job.reason),
    )
    return _table(columns, jobs, width, lambda job: job.phase)


def job_line(job: JobState) -> str:
    """Return what a job is doing, without ages, so that it changes only if the job goes on."""
    parts = [job.task_id[:8], job.executor, job.phase]
    parts += [f"round {job.round}"] if job.round is not None else []
    parts += [f"loss {number(job.metrics['loss'])}"] if "loss" in job.metrics else []
    return " ".join([*parts, job.reason]).rstrip()


def _leases(leases: Sequence[LeaseState], now: float, width: int | None) -> list[Text]:
    columns: tuple[_Column[LeaseState], ...] = (
        _Column("LEASE", 0, lambda lease: lease.id[:8]),
        _Column("STATE", 0, lambda lease: lease.state),
        _Column("JOB", 2, lambda lease: (lease.task_id or "")[:8]),
        _Column("ENDS IN", 1, lambda lease: _left(lease.deadline, now), right=True),
        _Column("PRICE", 3, lambda lease: number(lease.price), right=True),
        _Column("HELD", 5, lambda lease: short_duration(now - lease.accepted) if lease.accepted else "", right=True),
        _Column("SCHEDULER", 4, lambda lease: short_peer(lease.scheduler)),
        _Column("RESERVES", 6, lambda lease: _amounts(lease.resources)),
    )
    return _table(columns, leases, width, lambda lease: lease.state)


def _requests(requests: Sequence[RequestState], now: float, width: int | None) -> list[Text]:
    columns: tuple[_Column[RequestState], ...] = (
        _Column("HEARD", 1, lambda one: f"{short_duration(now - one.at)} ago", right=True),
        _Column("TIMES", 5, lambda one: str(one.count), right=True),
        _Column("SCHEDULER", 3, lambda one: short_peer(one.scheduler) or "not verified"),
        _Column("EXECUTOR", 4, lambda one: ", ".join(one.executors)),
        _Column("BID", 2, lambda one: number(one.bid) if one.scheduler else "", right=True),
        _Column("ANSWER", 0, lambda one: _ANSWERS[one.answer]),
        _Column("PRICE", 6, lambda one: _optional(one.price), right=True),
        _Column("REASON", 0, lambda one: one.reason),
    )
    return _table(columns, requests, width, lambda one: one.answer)


def _peers(peers: Sequence[PeerState], width: int | None) -> list[Text]:
    columns: tuple[_Column[PeerState], ...] = (
        _Column("PEER", 0, lambda peer: short_peer(peer.peer_id)),
        _Column("ROLE", 1, lambda peer: peer.role),
        _Column("PATH", 0, lambda peer: "relayed" if peer.relayed else "direct"),
        _Column("TRANSPORT", 3, lambda peer: "TCP" if peer.transport == "tcp" else "QUIC"),
        _Column("ROUND TRIP", 4, lambda peer: _milliseconds(peer.round_trip_s), right=True),
        _Column("RECEIVED", 2, lambda peer: _bytes(peer.received_bytes), right=True),
        _Column("SENT", 2, lambda peer: _bytes(peer.sent_bytes), right=True),
    )
    return _table(columns, peers, width, lambda peer: "relayed" if peer.relayed else "direct")


def _table(
    columns: Iterable[_Column[_Item]], items: Sequence[_Item], width: int | None, style: Callable[[_Item], str]
) -> list[Text]:
    """Return the titles and a line for each item, without the columns for which there is no place.

    Args:
        columns: what to show of an item.
        items: the items.
        width: the characters of a line; None for any number.
        style: returns the word of an item that chooses the colour of its line's first cell.
    """
    shown = [(column, [column.cell(item) for item in items]) for column in columns]
    shown = [(column, cells) for column, cells in shown if any(cells)]
    while width is not None and _width(shown) > width and any(column.rank for column, _ in shown):
        shown.remove(max(shown, key=lambda one: one[0].rank))
    sizes = [max(map(len, (column.title, *cells))) for column, cells in shown]
    rows = [[column.title for column, _ in shown], *zip(*(cells for _, cells in shown), strict=True)]
    lines = []
    for number_, row in enumerate(rows):
        padded = (
            cell.rjust(size) if column.right else cell.ljust(size)
            for cell, size, (column, _) in zip(row, sizes, shown, strict=True)
        )
        line = Text(_GAP.join(padded).rstrip()[:width], style="" if number_ else "dim")
        if number_ and (colour := _STYLES.get(style(items[number_ - 1]))):
            line.stylize(colour, 0, sizes[0])
        lines.append(line)
    return lines


def _width(shown: Sequence[tuple[_Column[Any], list[str]]]) -> int:
    sizes = (max(map(len, (column.title, *cells))) for column, cells in shown)
    return sum(sizes) + len(_GAP) * (len(shown) - 1)


def _optional(value: float | None) -> str:
    return "" if value is None else number(value)


def _left(deadline: float, now: float) -> str:
    return short_duration(deadline - now) if deadline > now else "over"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{number(1000 * seconds)} ms"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _amounts(resources: Resources) -> str:
    units = (("cpu", "CPU"), ("memory", "GB memory"), ("storage", "GB storage"), ("gpu", "GB GPU"))
    amounts = ((getattr(resources, name), unit) for name, unit in units)
    return ", ".join(f"{number(amount)} {unit}" for amount, unit in amounts if amount)
