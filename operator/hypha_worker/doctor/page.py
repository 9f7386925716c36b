"""Writes the table of all checks into docs/troubleshooting.md: `python -m hypha_worker.doctor.page FILE`."""

import sys

from hypha_contracts.pages import rewrite, with_checks
from hypha_worker.doctor.checks import CHECKS


def with_table(page: str) -> str:
    """Return a page of documentation with the table of all checks between its markers. ValueError without markers."""
    rows = ((f"`{check.id}`", check.question, "yes" if check.at_start else "", check.symptom) for check in CHECKS)
    return with_checks(page, ("check", "finds out", "at start", "for the guide's symptom"), rows)


if __name__ == "__main__":
    rewrite(sys.argv[1:], with_table)
