"""Links lead somewhere, generated pages are up to date, and the site builds without a warning or an outside request."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from documentation import links, reference, site
from documentation.pages import pages, read, site_path

_LOADING_TAGS = ("audio", "embed", "iframe", "img", "script", "source", "video")
_LOADING_LINKS = {"icon", "manifest", "modulepreload", "preconnect", "preload", "stylesheet"}


class Page(HTMLParser):
    """What a page of the site loads, its anchors, and where it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors.add(values.get("id", ""))
        if tag in _LOADING_TAGS and "src" in values:
            self.loads.append(values["src"])
        elif tag == "link" and _LOADING_LINKS & set(values.get("rel", "").split()):
            self.loads.append(values["href"])
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(page: str) -> None:
    assert links.broken(page) == []


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("In a cluster", "in-a-cluster"), ("`fetch`: download, twice", "fetch-download-twice"), ("a  b", "a--b")],
)
def test_a_heading_has_the_anchor_that_github_gives_it(heading: str, anchor: str) -> None:
    assert links.slug(heading) == anchor


def test_code_that_looks_like_a_link_is_none() -> None:
    assert (
        links.rewritten("`[a](b)` [a](b)\n```\n[a](b)\n```\n", lambda _: "c") == "`[a](b)` [a](c)\n```\n[a](b)\n```\n"
    )


@pytest.mark.parametrize("page", reference.PAGES)
def test_a_generated_page_is_up_to_date(page: str) -> None:
    assert reference.PAGES[page](read(page)) == read(page), "run make reference"


def test_the_reference_has_every_command() -> None:
    assert {name for app in reference.APPS for name in reference.commands(app)} >= {"init", "drain", "gateway", "demo"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The pages of the site, built as `make docs` builds it."""
    directory = site.build(tmp_path_factory.mktemp("docs") / "build")
    return [(directory / site_path(page)).with_suffix(".html") for page in pages()]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    navigation = site.CONFIG.read_text().partition("\nnav:\n")[2]
    assert sorted(re.findall(r": ([^ ]+\.md)$", navigation, re.MULTILINE)) == sorted(map(site_path, pages()))


def test_the_pages_of_the_site_load_nothing_from_another_host(built: list[Path]) -> None:
    loads = [(page, source.partition("?")[0]) for page in built for source in Page(page).loads]
    assert [source for _, source in loads if re.match("([a-z]+:)?//", source)] == []
    assert [source for page, source in loads if not (page.parent / source).is_file()] == []


def test_every_link_of_the_site_leads_to_an_anchor_there(built: list[Path]) -> None:
    anchors = {page: Page(page).anchors for page in built}
    broken = []
    for page in built:
        for link in Page(page).links:
            file, _, anchor = link.partition("#")
            target = Path(os.path.normpath(page.parent / file)) if file else page
            target = target / "index.html" if target.is_dir() else target
            leads = target.is_file() and (not anchor or anchor in anchors[target])
            if not leads and not re.match("[a-z]+:", link):
                broken.append(f"{page.name}: {link}")
    assert broken == []


def test_the_small_environment_has_the_versions_of_the_complete_one() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^([-a-z0-9]+==[^ ]+)", read(f"requirements/{name}.txt"), re.MULTILINE))

    assert pins("light")
    assert pins("light") <= pins("dev")
