"""`python -m charts.monitoring [--check]`: write the generated files, or fail if one is stale."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from charts.monitoring.alerts import rules, table
from charts.monitoring.dashboards import DASHBOARDS, rendered
from hypha_contracts.pages import replace_table

_ROOT: Final = Path(__file__).parents[2]
_CHART: Final = _ROOT / "charts" / "hypha-worker"
_BEGIN: Final = "<!-- alerts: made by `make monitoring` -->\n"
_END: Final = "<!-- end of alerts -->\n"
_NOTE: Final = "# Made from charts/monitoring/alerts.py by `make monitoring`; do not edit.\n"


def files() -> Iterator[tuple[Path, str]]:
    """Yield each generated file and its text."""
    for dashboard in DASHBOARDS:
        yield _CHART / "dashboards" / f"{dashboard.name}.json", rendered(dashboard)
    yield _CHART / "files" / "alerts.yaml", _NOTE + rules()
    page = _ROOT / "docs" / "monitoring.md"
    yield page, replace_table(page.read_text(), "alerts", _BEGIN, _END, table())


def main(arguments: list[str]) -> str | None:
    """Write or check the files, and return the problem, or None."""
    for path, text in files():
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            return f"{path.relative_to(_ROOT)} is stale: run `make monitoring`"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
