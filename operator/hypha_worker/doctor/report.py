"""Shows results to people and to programs."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from hypha_contracts.text import escaped
from hypha_worker.doctor.check import Check, Result, worst
from hypha_worker.findings import Mark

SCHEMA_VERSION: Final = 1
_COLOURS: Final = {Mark.OK: "32", Mark.WARNING: "33", Mark.FAILURE: "31", Mark.SKIPPED: "2"}
_WIDTH: Final = max(map(len, Mark))


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


def to_json(results: Sequence[Result], config: Path, version: str) -> str:
    """Return the results for programs. docs/troubleshooting.md documents the fields."""
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
    report = {"schema": SCHEMA_VERSION, "version": version, "config": str(config), "mark": mark, "checks": checks}
    return json.dumps(report, indent=2, ensure_ascii=False)


def progress(remaining: Sequence[Check], total: int) -> str:
    """Return a line about the checks that still run."""
    names = ", ".join(check.id for check in remaining[:3]) + (", ..." if len(remaining) > 3 else "")
    return f"{total - len(remaining)} of {total} checks done" + (f"; waiting for {names}" if names else "")


def exit_code(results: Sequence[Result]) -> int:
    """Return 1 if a check failed, otherwise 0."""
    return int(any(result.mark is Mark.FAILURE for result in results))


def _painted(mark: Mark, *, colour: bool) -> str:
    text = f"{mark:<{_WIDTH}}"
    return f"\x1b[{_COLOURS[mark]}m{text}\x1b[0m" if colour else text


def _bold(text: str, *, colour: bool) -> str:
    return f"\x1b[1m{text}\x1b[0m" if colour else text
