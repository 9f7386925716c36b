"""The table of `kubectl hypha jobs`, as wide as the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.text import Text

from hypha_contracts.durations import short_duration
from hypha_contracts.text import number
from hypha_kubectl.views.jobs import Job
from hypha_kubectl.views.shown import STYLES, job_age, time_left_s

_GAP: Final = "  "


@dataclass(frozen=True)
class _Column:
    """A column. In a narrow terminal, those with the highest `rank` are left out first."""

    title: str
    rank: int
    cell: Callable[[Job, datetime], str]
    right: bool = False


def _optional(value: float | None) -> str:
    return "" if value is None else number(value)


def _lease(job: Job, now: datetime) -> str:
    if job.ended or job.lease_ends is None:
        return ""
    left_s = (job.lease_ends - now).total_seconds()
    return short_duration(left_s) if left_s > 0 else "over"


def _left(job: Job, now: datetime) -> str:
    left_s = time_left_s(job, now)
    return "" if left_s is None else short_duration(left_s)


_FULL_NAME: Final = _Column("JOB", 0, lambda job, _: job.name)
_SHORT_NAME: Final = _Column("JOB", 0, lambda job, _: job.short_name)
_NAMESPACE: Final = _Column("NAMESPACE", 3, lambda job, _: job.namespace)
_COLUMNS: Final = (
    _Column("WORKER", 4, lambda job, _: job.worker),
    _Column("EXECUTOR", 8, lambda job, _: job.executor),
    _Column("PHASE", 0, lambda job, _: job.phase),
    _Column("AGE", 1, job_age, right=True),
    _Column("ROUND", 5, lambda job, _: _optional(job.round), right=True),
    _Column("LOSS", 2, lambda job, _: _optional(job.metrics.get("loss")), right=True),
    _Column("SAMPLES/S", 7, lambda job, _: "" if job.ended else _optional(job.samples_per_second), right=True),
    _Column("ROUNDS/H", 13, lambda job, _: "" if job.ended else _optional(job.rounds_per_hour), right=True),
    _Column("LEFT", 14, _left, right=True),
    _Column("LEASE", 6, _lease, right=True),
    _Column("PRICE", 11, lambda job, _: number(job.price), right=True),
    _Column("EARNED", 9, lambda job, _: number(job.earned), right=True),
    _Column("NODE", 12, lambda job, _: job.node or ""),
    _Column("REASON", 10, lambda job, _: job.reason),
)


class Layout:
    """The columns that fit into a width, and how wide each is.

    Args:
        jobs: the jobs that the table shows now.
        now: the time for ages.
        width: the number of characters of a line; None for any.
        namespaces: whether to show each job's namespace.
    """

    def __init__(self, jobs: Sequence[Job], now: datetime, width: int | None, *, namespaces: bool) -> None:
        columns = [*([_NAMESPACE] if namespaces else []), _FULL_NAME, *_COLUMNS]
        if not _fits(columns, jobs, now, width):
            columns[columns.index(_FULL_NAME)] = _SHORT_NAME
        while not _fits(columns, jobs, now, width) and len(columns) > 1:
            columns.remove(max(columns, key=lambda column: column.rank))
        self._columns = [(column, _width(column, jobs, now)) for column in columns]

    def header(self) -> Text:
        """Return the titles."""
        return Text(self._line([column.title for column, _ in self._columns]), style="bold")

    def row(self, job: Job, now: datetime) -> Text:
        """Return the line of a job."""
        cells = [column.cell(job, now) for column, _ in self._columns]
        text = Text(self._line(cells))
        text.highlight_words([job.phase], STYLES.get(job.phase, ""))
        return text

    def _line(self, cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, (column, width) in zip(cells, self._columns, strict=True)
        ]
        return _GAP.join(padded).rstrip()


def _width(column: _Column, jobs: Sequence[Job], now: datetime) -> int:
    return max(len(column.title), *(len(column.cell(job, now)) for job in jobs), 0)


def _fits(columns: Sequence[_Column], jobs: Sequence[Job], now: datetime, width: int | None) -> bool:
    needed = sum(_width(column, jobs, now) for column in columns) + len(_GAP) * (len(columns) - 1)
    return width is None or needed <= width
