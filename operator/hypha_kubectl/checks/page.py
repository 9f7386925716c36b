"""Writes the table of all checks into docs/kubectl.md: `python -m hypha_kubectl.checks.page FILE`."""

import sys

from hypha_contracts.pages import rewrite, with_checks
from hypha_kubectl.checks.checks import CHECKS


def with_table(page: str) -> str:
    """Return a page of documentation with the table of all checks between its markers. ValueError without markers."""
    rows = (
        (f"`{check.id}`", check.question, "yes" if check.before else "", "yes" if check.after else "")
        for check in CHECKS
    )
    return with_checks(page, ("check", "finds out", "with `--pre`", "without"), rows)


if __name__ == "__main__":
    rewrite(sys.argv[1:], with_table)
