"""Write the table of values into the chart's README.md, from the comments in its values.yaml.

`python charts/chart_docs.py` writes the table, and with `--check` it fails if the table is stale. A line `# -- text`
describes the key below it. Every value needs a description, unless one of its parents has one.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hypha_contracts.pages import replace_table

CHART = Path(__file__).parent / "hypha-worker"
BEGIN, END = "<!-- values: made by `make chart-docs` -->\n", "<!-- end of values -->\n"
KEY = re.compile(r"( *)([A-Za-z][A-Za-z0-9]*):")


def described(values: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the description of each key that has one."""
    path: list[str] = []
    description = ""
    for line in values.splitlines():
        if line.strip().startswith("# -- "):
            description = line.strip().removeprefix("# -- ")
        elif match := KEY.match(line):
            path = [*path[: len(match[1]) // 2], match[2]]
            if description:
                yield ".".join(path), description
            description = ""


def undescribed(values: Any, described_paths: set[str], path: str = "") -> Iterator[str]:
    """Yield the paths of values without a description."""
    if path in described_paths:
        return
    if not isinstance(values, dict) or not values:
        yield path
        return
    for key, value in values.items():
        yield from undescribed(value, described_paths, f"{path}.{key}".lstrip("."))


def table(values_yaml: str) -> str:
    """Return the table in Markdown. Raises ValueError, which names the values without a description."""
    values = yaml.safe_load(values_yaml)
    descriptions = dict(described(values_yaml))
    if missing := list(undescribed(values, set(descriptions))):
        raise ValueError(f"values.yaml: write a `# -- ` comment above {', '.join(missing)}")
    rows = ["| value | default | meaning |", "| --- | --- | --- |"]
    for path, description in descriptions.items():
        default = values
        for key in path.split("."):
            default = default[key]
        rows.append(f"| `{path}` | `{json.dumps(default)}` | {description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str, values_yaml: str) -> str:
    """Return the README with the table between its markers. Raises ValueError if the README has no markers."""
    return replace_table(readme, "values", BEGIN, END, table(values_yaml))


def main(arguments: list[str]) -> str | None:
    """Write or check the table, and return the problem, or None."""
    readme = CHART / "README.md"
    before = readme.read_text()
    after = with_table(before, (CHART / "values.yaml").read_text())
    if "--check" in arguments:
        return None if before == after else f"{readme} is stale: run `make chart-docs`"
    readme.write_text(after)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
