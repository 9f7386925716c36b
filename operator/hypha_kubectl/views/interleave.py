"""Put the lines of several logs into one, by the time at which each was written. Pure."""

import re
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from hypha_contracts.text import without_hidden

HOLD_S: Final = 0.3
"""How long the lines of one log wait for earlier lines of another that says nothing."""
MAX_WAITING: Final = 20_000
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?")


class Moment(NamedTuple):
    """A time with nanoseconds, by which lines are sorted: seconds since the epoch, and the rest."""

    seconds: int
    nanoseconds: int


@dataclass(frozen=True)
class Line:
    """A line of a log."""

    source: str
    moment: Moment
    text: str


def parse_line(source: str, raw: str, before: Moment) -> Line:
    """Return a line of a log that begins with its time. One without a time belongs to the line before it."""
    found = _TIME.match(raw)
    if found is None:
        return Line(source, before, shown(raw))
    date, fraction, zone = found.groups()
    try:
        seconds = int(datetime.fromisoformat(date + zone).timestamp())
    except ValueError:  # a job may write any digits
        return Line(source, before, shown(raw))
    return Line(source, Moment(seconds, int((fraction or "").ljust(9, "0"))), shown(raw[found.end() :]))


def shown(text: str) -> str:
    """Return a line of a job's output that cannot control the terminal."""
    return without_hidden(text.rstrip("\r\n").expandtabs())


class Interleaver:
    """Takes lines as they arrive and returns them in order.

    A line is returned once every other log has a later one, has ended, or has said nothing for `HOLD_S`.
    """

    def __init__(self, sources: list[str], now_s: float) -> None:
        self._waiting: dict[str, deque[Line]] = {source: deque() for source in sources}
        self._heard_s = dict.fromkeys(sources, now_s)
        self._open = set(sources)

    @property
    def is_over(self) -> bool:
        """Whether every log has ended and all lines are returned."""
        return not self._open and not any(self._waiting.values())

    def add(self, line: Line, now_s: float) -> None:
        """Take a line, which is not earlier than those of the same log before it."""
        self._waiting[line.source].append(line)
        self._heard_s[line.source] = now_s

    def end(self, source: str) -> None:
        """Record that a log has ended."""
        self._open.discard(source)

    def take(self, now_s: float) -> list[Line]:
        """Return the lines whose turn it is."""
        lines: list[Line] = []
        while heads := [waiting[0] for waiting in self._waiting.values() if waiting]:
            if self._awaited(now_s) and sum(map(len, self._waiting.values())) < MAX_WAITING:
                break
            first = min(heads, key=lambda line: line.moment)
            lines.append(self._waiting[first.source].popleft())
        return lines

    def _awaited(self, now_s: float) -> bool:
        """Whether a log without a waiting line may soon bring an earlier one."""
        silent = (source for source in self._open if not self._waiting[source])
        return any(now_s - self._heard_s[source] < HOLD_S for source in silent)
