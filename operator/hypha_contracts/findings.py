"""What a check found out, and how it is shown to people and programs."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Any, Final

from hypha_contracts.text import escaped


class Mark(StrEnum):
    """How well a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


_WORST_FIRST: Final = (Mark.FAILURE, Mark.WARNING, Mark.OK, Mark.SKIPPED)
_COLOURS: Final = {Mark.OK: "32", Mark.WARNING: "33", Mark.FAILURE: "31", Mark.SKIPPED: "2"}
_WIDTH: Final = max(map(len, Mark))


@dataclass(frozen=True)
class Finding:
    """One fact, in one line, and what to do about it unless it is ok.

    Attributes:
        message: for a skipped check, why it was skipped.
        remedy: complete sentences; empty if there is nothing to do.
    """

    mark: Mark
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


def ok(message: str) -> Finding:
    """Return that all is well."""
    return Finding(Mark.OK, message)


def warning(message: str, remedy: str) -> Finding:
    """Return what may cause trouble."""
    return Finding(Mark.WARNING, message, remedy)


def failure(message: str, remedy: str) -> Finding:
    """Return what keeps something from its work."""
    return Finding(Mark.FAILURE, message, remedy)


def skipped(reason: str) -> Finding:
    """Return why something was not checked."""
    return Finding(Mark.SKIPPED, reason)


@dataclass(frozen=True)
class Subject:
    """What a check is about.

    Attributes:
        id: stable, for programs.
        question: what the check finds out, for people.
    """

    id: str
    category: str
    question: str


@dataclass(frozen=True)
class Result:
    """What a check found."""

    check: Subject
    findings: Sequence[Finding]

    @property
    def mark(self) -> Mark:
        """The worst mark of the findings."""
        return worst(finding.mark for finding in self.findings)


def worst(marks: Iterable[Mark]) -> Mark:
    """Return the worst of some marks, or skipped if there are none."""
    found = set(marks)
    return next((mark for mark in _WORST_FIRST if mark in found), Mark.SKIPPED)


def exit_code(results: Sequence[Result]) -> int:
    """Return 1 if a check failed, otherwise 0."""
    return int(any(result.mark is Mark.FAILURE for result in results))


def to_text(results: Sequence[Result], *, colour: bool) -> Iterator[str]:
    """Yield the lines for people: the findings by category, the remedy below each, and a summary."""
    for category, group in groupby(results, lambda result: result.check.category):
        yield _bold(category, colour=colour)
        for result in group:
            for finding in result.findings:
                yield f"  {_painted(finding.mark, colour=colour)} {escaped(finding.message)}  [{result.check.id}]"
                if finding.remedy:
                    yield f"  {'':{_WIDTH}} -> {escaped(finding.remedy)}"
        yield ""
    counts = Counter(result.mark for result in results)
    yield ", ".join(f"{counts[mark]} {mark}" for mark in Mark) + f" of {len(results)} checks"


def to_json(results: Sequence[Result], **facts: Any) -> str:
    """Return the results for programs, after the facts. docs/troubleshooting.md documents the fields."""
    checks = [
        {
            "id": result.check.id,
            "category": result.check.category,
            "question": result.check.question,
            "mark": result.mark,
            "findings": [
                {"mark": f.mark, "message": escaped(f.message), "remedy": escaped(f.remedy)} for f in result.findings
            ],
        }
        for result in results
    ]
    mark = worst(result.mark for result in results)
    return json.dumps({**facts, "mark": mark, "checks": checks}, indent=2, ensure_ascii=False)


def _painted(mark: Mark, *, colour: bool) -> str:
    text = f"{mark:<{_WIDTH}}"
    return f"\x1b[{_COLOURS[mark]}m{text}\x1b[0m" if colour else text


def _bold(text: str, *, colour: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if colour else text
