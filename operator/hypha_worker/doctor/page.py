"""Writes the table of all checks into docs/troubleshooting.md: `python -m hypha_worker.doctor.page FILE`."""

import sys
from pathlib import Path
from typing import Final

from hypha_contracts.pages import replace_table
from hypha_worker.doctor.checks import CHECKS

BEGIN: Final = "<!-- checks: `make checks` writes this table -->\n"
END: Final = "<!-- end -->"


def with_table(page: str) -> str:
    """Return a page of documentation with the table of all checks between its markers. ValueError without markers."""
    return replace_table(page, "checks", BEGIN, END, _table())


def _table() -> str:
    rows = [
        f"| `{check.id}` | {check.question} | {'yes' if check.at_start else ''} | {check.symptom} |\n"
        for check in CHECKS
    ]
    return "| check | finds out | at start | for the guide's symptom |\n| --- | --- | --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_table(path.read_text()))
