"""Replace what may be secret in a text. It rather replaces too much. Pure."""

import re
from typing import Final

from hypha_contracts.text import without_hidden, without_url_secrets

REDACTED: Final = "<redacted>"
_PEM_BEGIN: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{1,64}-----")
_PEM_END: Final = re.compile(r"-----END [A-Z0-9 ]{1,64}-----")
_MAX_PEM_CHARS: Final = 4096
_USER: Final = re.compile(r"[^\s:/@'\"=,]{1,64}:[^\s/@'\"]{1,256}@(?!sha256:)(?=[\w.-])")
_SCHEME: Final = re.compile(r"\b(bearer|basic|digest|negotiate)(\s+|%20)[\w.~+/=%-]{6,}", re.IGNORECASE)
_NAMED: Final = re.compile(
    r"""((?:passw(?:or)?d|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization
          |cookie|session|signature|\bsig|[a-z0-9][_-]key)
        [\w.-]{0,64})
        (\\?["']?\s{0,4}(?:=>|=|:)\s{0,4})
        (\\?"(?:[^"\\]|\\.){0,4096}\\?"?|'[^']{0,4096}'?|[^\s,;&}\])]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_PASSPHRASE: Final = re.compile(r"(passphrase[\w.-]{0,64}[\"']?\s{0,4}[=:]).*", re.IGNORECASE)
_KNOWN: Final = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|pk-|rk_|xox[a-z]-|AKIA|ASIA|AIza|ya29\.|dckr_pat_|npm_|pypi-)[\w.-]{6,}"
    r"|\beyJ[\w-]{5,}(?:\.[\w-]{2,}){0,4}"
)
_RUN: Final = re.compile(r"[A-Za-z0-9+/_=-]{24,}")
_PIECE: Final = re.compile(r"[A-Za-z0-9]+")
_PEER_ID: Final = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}|Qm[1-9A-HJ-NP-Za-km-z]{44}")
_MIN_RANDOM_CHARS: Final = 24
_MAX_LINE_CHARS: Final = 4000


def scrub(text: str) -> str:
    """Return a text without what may be secret: keys, tokens, passwords, parts of addresses, long random texts."""
    text = _without_pem(text)
    text = "\n".join(_short(line) for line in text.split("\n"))
    text = without_url_secrets(text)
    text = _USER.sub(f"{REDACTED}@", text)
    text = _SCHEME.sub(rf"\1 {REDACTED}", text)
    text = _PASSPHRASE.sub(rf"\1 {REDACTED}", text)
    text = _NAMED.sub(rf"\1\2{REDACTED}", text)
    text = _KNOWN.sub(REDACTED, text)
    text = _RUN.sub(_without_random, text)
    return "\n".join(without_hidden(line.expandtabs()) for line in text.split("\n"))


def _without_pem(text: str) -> str:
    """Return a text without blocks of PEM. Of one without an end, the first characters are replaced."""
    parts, position = [], 0
    while begin := _PEM_BEGIN.search(text, position):
        limit = begin.end() + _MAX_PEM_CHARS
        end = _PEM_END.search(text, begin.end(), limit)
        parts += [text[position : begin.start()], REDACTED]
        position = end.end() if end else limit
    return "".join(parts) + text[position:]


def _short(line: str) -> str:
    if len(line) <= _MAX_LINE_CHARS:
        return line
    return f"{line[:_MAX_LINE_CHARS]}... ({len(line)} characters)"


def _without_random(run: re.Match[str]) -> str:
    """Return a long run of characters, or the replacement if it looks random and is no peer id and no digest."""
    text = run[0]
    if run.string[: run.start()].endswith("sha256:"):
        return text
    rest = _PEER_ID.sub("", text)
    mixed = all(any(map(test, rest)) for test in (str.islower, str.isupper, str.isdigit))
    if mixed and len(rest) >= _MIN_RANDOM_CHARS:
        return REDACTED
    return text if not any(map(_is_random, _PIECE.findall(rest))) else REDACTED


def _is_random(piece: str) -> bool:
    return len(piece) >= _MIN_RANDOM_CHARS and any(map(str.isdigit, piece)) and any(map(str.isalpha, piece))
