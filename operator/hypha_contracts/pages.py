"""Generated tables in pages of documentation."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

_CHECKS: Final = ("<!-- checks: `make checks` writes this table -->\n", "<!-- end -->")


def with_checks(page: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a page with a table of checks between its markers. ValueError if the page lacks them."""
    lines = (titles, ["---"] * len(titles), *rows)
    return replace_table(page, "checks", *_CHECKS, "".join(f"| {' | '.join(cells)} |\n" for cells in lines))


def rewrite(paths: Iterable[str], change: Callable[[str], str]) -> None:
    """Change the text of these files."""
    for path in map(Path, paths):
        path.write_text(change(path.read_text()))


def replace_table(page: str, name: str, begin: str, end: str, table: str) -> str:
    """Return a page with a new table of `name` between two markers. ValueError if the page lacks a marker."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page has no table of {name}; add the lines {begin.strip()} and {end.strip()}")
    return f"{before}{begin}{table}{end}{after}"
