"""The pages of the documentation: where each lies in the repository and on the site."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
_OUTSIDE_DOCS: Final = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "charts/hypha-worker/README.md",
    "e2e/README.md",
    "examples/README.md",
)


def pages() -> list[str]:
    """Return the paths of all pages, relative to the repository."""
    in_docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
    return [*_OUTSIDE_DOCS, *in_docs]


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text()


def site_path(path: str) -> str:
    """Return where the site has a file of the repository. docs/ is the site's root, and a README a directory's page."""
    return re.sub(r"(^|/)README\.md$", r"\1index.md", path.removeprefix("docs/"))
