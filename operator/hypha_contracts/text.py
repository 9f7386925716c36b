"""How values are shown. Text of peers, schedulers and jobs is made safe for the log, objects and the terminal."""

import re
import unicodedata
from typing import Final

MAX_CHARS: Final = 4096
"""The most characters of one text that are shown."""
_MAX_LINES: Final = 200
_INVISIBLE: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols that are shown as nothing."""
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,31}://)([^\s/?#'\"<>\\]*)([^\s'\"<>]*)")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]*\]|[\w.-]*)(:\d{1,5}\b)?")


def count(amount: int, noun: str) -> str:
    """Return an amount of things, such as `1 job` or `2 jobs`."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def escaped(text: str, max_chars: int = MAX_CHARS) -> str:
    r"""Return text as one line without hidden characters, cut to a number of characters.

    Controls, line breaks, bidirectional controls, characters without a width of their own and surrogates become
    escapes such as `\x1b` or `\u202e`. Backslashes stay, so that escaping twice changes nothing. Of a URL, only the
    scheme and the host stay, because every other part may be a secret.
    """
    kept = without_hidden(without_url_secrets(text[:max_chars]))
    if len(text) > max_chars or len(kept) > max_chars:
        ending = f"... ({len(text)} characters)"
        kept = kept[: max_chars - len(ending)] + ending
    return kept


def escaped_lines(text: str, max_lines: int = _MAX_LINES) -> list[str]:
    """Return the lines of a text, each escaped. Of more lines than the maximum, the first and last are kept."""
    lines = text.split("\n")
    if len(lines) > max_lines:
        kept = max_lines // 2
        lines = [*lines[:kept], f"... ({len(lines)} lines)", *lines[len(lines) - kept :]]
    return [escaped(line) for line in lines]


def without_hidden(text: str) -> str:
    """Return text with an escape in place of each hidden character."""
    return text if text.isascii() and text.isprintable() else "".join(map(_shown, text))


def without_url_secrets(text: str) -> str:
    """Return text with every URL in it cut to its scheme and host."""
    return _URL.sub(_scheme_and_host, text) if "://" in text else text


def number(value: float) -> str:
    """Return a number with at most four significant digits, but all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def short_peer(peer_id: str) -> str:
    """Return a peer id with its beginning and its end, which tell peers apart."""
    return peer_id if len(peer_id) <= 20 else f"{peer_id[:8]}..{peer_id[-6:]}"


def _scheme_and_host(url: re.Match[str]) -> str:
    scheme, authority, rest = url.groups()
    host = _HOST.match(authority.rpartition("@")[2])
    return scheme + (host[0] if host else "") + ("/..." if rest not in ("", "/") else rest)


def _shown(character: str) -> str:
    hidden = not character.isprintable() or unicodedata.category(character) in ("Mn", "Me") or character in _INVISIBLE
    return character.encode("unicode_escape").decode("ascii") if hidden else character
