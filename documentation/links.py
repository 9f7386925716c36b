"""The links of the pages, and what is wrong with them."""

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from documentation.pages import ROOT, read

_FENCED: Final = re.compile(r"^ *(```+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_INLINE_CODE: Final = re.compile(r"`[^`\n]+`")
_LINK: Final = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} +(.+?) *#*$", re.MULTILINE)
_EXTERNAL: Final = re.compile(r"[a-z]+:")


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(page: str) -> set[str]:
    """Return the anchors of a page: those of its headings. A repeated heading gets a number."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in _HEADING.findall(_FENCED.sub("", read(page))):
        name = slug(heading)
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links(page: str) -> Iterator[str]:
    """Yield the targets of a page's links to files and anchors of the repository."""
    text = _INLINE_CODE.sub("``", _FENCED.sub("", read(page)))
    for match in _LINK.finditer(text):
        if not _EXTERNAL.match(match["target"]):
            yield match["target"]


def resolve(page: str, target: str) -> tuple[str, str]:
    """Return the path of a link's file in the repository, and the anchor in it, which may be empty."""
    path, _, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page, anchor


def broken(page: str) -> list[str]:
    """Return a message for each link of a page that leads nowhere."""
    return [message for target in links(page) if (message := _fault(page, target))]


def _fault(page: str, target: str) -> str | None:
    path, anchor = resolve(page, target)
    if path.startswith("..") or not (ROOT / path).exists():
        return f"{page}: {target}: there is no {path}. Correct the link."
    if anchor and (not path.endswith(".md") or anchor not in anchors(path)):
        return f"{page}: {target}: {path} has no heading #{anchor}. Correct the link."
    return None


def rewritten(markdown: str, change: Callable[[str], str | None]) -> str:
    """Return a page with each target of a link to the repository changed. None leaves only the text of the link."""
    code = [match.span() for match in (*_FENCED.finditer(markdown), *_INLINE_CODE.finditer(markdown))]

    def replaced(match: re.Match[str]) -> str:
        in_code = any(begin <= match.start("target") < end for begin, end in code)
        if in_code or _EXTERNAL.match(match["target"]):
            return match[0]
        target = change(match["target"])
        return match["text"].strip("[]") if target is None else f"{match['text']}({target})"

    return _LINK.sub(replaced, markdown)
