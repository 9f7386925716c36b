"""Writes the tables of docs/conditions.md: `python -m hypha_contracts.reasons_page docs/conditions.md`."""

import sys

from hypha_contracts.job_reasons import JobReason
from hypha_contracts.pages import replace_table, rewrite
from hypha_contracts.reasons import Reason, WorkerReason


def with_tables(page: str) -> str:
    """Return a page of documentation with the table of each resource's reasons between its markers."""
    for reasons in (WorkerReason, JobReason):
        begin = f"<!-- {reasons.__name__}: `make reasons` writes this table -->\n"
        page = replace_table(page, reasons.__name__, begin, "<!-- end -->", _table(reasons))
    return page


def _table(reasons: type[Reason]) -> str:
    rows = [f"| {row.conditions} | `{row}` | {row.look_at} | {row.remedy} |\n" for row in reasons]
    return "| condition | reason | look at | remedy |\n| --- | --- | --- | --- |\n" + "".join(rows)


if __name__ == "__main__":
    rewrite(sys.argv[1:], with_tables)
