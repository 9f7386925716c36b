"""Generated tables in pages of documentation."""


def replace_table(page: str, name: str, begin: str, end: str, table: str) -> str:
    """Return a page with a new table of `name` between two markers. ValueError if the page lacks a marker."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page has no table of {name}; add the lines {begin.strip()} and {end.strip()}")
    return f"{before}{begin}{table}{end}{after}"
