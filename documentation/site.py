"""Builds the site of the documentation: `python -m documentation.site`.

The pages are written for the repository, where people read them first. Zensical wants all of them below one directory,
so this copies them there, with links that are right on the site.
"""

import posixpath
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from documentation.links import links, resolve, rewritten
from documentation.pages import ROOT, pages, read, site_path

CONFIG: Final = ROOT / "documentation" / "mkdocs.yml"
_BUILD: Final = ROOT / "build" / "docs"


def prepare(directory: Path) -> None:
    """Write all pages, and the files to which they link, below an empty directory."""
    for page in pages():
        _target(directory, page).write_text(on_site(page))
    for path in {resolve(page, target)[0] for page in pages() for target in links(page)}:
        if (ROOT / path).is_file() and not path.endswith(".md"):
            shutil.copyfile(ROOT / path, _target(directory, path))


def on_site(page: str) -> str:
    """Return the text of a page with links that are right on the site. Directories are not there."""
    here = posixpath.dirname(site_path(page)) or "."

    def change(target: str) -> str | None:
        path, anchor = resolve(page, target)
        if (ROOT / path).is_dir():
            return None
        relative = posixpath.relpath(site_path(path), here)
        return f"{relative}#{anchor}" if anchor else relative

    return rewritten(read(page), change)


def build(directory: Path) -> Path:
    """Build the site in a directory, whose content is removed, and return the site's own. Warnings end the program."""
    shutil.rmtree(directory, ignore_errors=True)
    prepare(directory / "pages")
    config = shutil.copy(CONFIG, directory)
    command = (sys.executable, "-m", "zensical", "build", "--strict", "--config-file", config)
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{result.stdout}error: the site has warnings, see above. Correct the pages or {CONFIG}.")
    return directory / "site"


def _target(directory: Path, path: str) -> Path:
    target = directory / site_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


if __name__ == "__main__":
    print(f"The site is in {build(_BUILD).relative_to(ROOT)}/. Open index.html there.")
