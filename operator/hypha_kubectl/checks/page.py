"""Writes the table of all checks into docs/kubectl.md: `python -m hypha_kubectl.checks.page FILE`."""

import sys
from pathlib import Path
from typing import Final

from hypha_contracts.pages import replace_table
from hypha_kubectl.checks.checks import CHECKS

BEGIN: Final = "<!-- checks: `make checks` writes this table -->\n"
END: Final = "<!-- end -->"


def with_table(page: str) -> str:
    """Return a page of documentation with the table of all checks between its markers. ValueError without markers."""
    return replace_table(page, "checks", BEGIN, END, _table())


def _table() -> str:
    rows = [
        f"| `{check.id}` | {check.question} | {'yes' if check.before else ''} | {'yes' if check.after else ''} |\n"
        for check in CHECKS
    ]
    return "| check | finds out | with `--pre` | without |\n| --- | --- | --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_table(path.read_text()))
