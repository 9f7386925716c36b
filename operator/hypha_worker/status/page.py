"""The page itself, and the headers of every answer beside it."""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from importlib.resources import files
from typing import Final

PAGE: Final = files(__package__).joinpath("page.html").read_bytes()


def _hashes(tag: bytes) -> str:
    """Return the sources by which a policy permits exactly the elements of this tag that the page has."""
    return " ".join(f"'sha256-{b64encode(sha256(content).digest()).decode()}'" for content in _contents(tag))


def _contents(tag: bytes) -> Iterator[bytes]:
    return (found[1] for found in re.finditer(rb"<%b>(.*?)</%b>" % (tag, tag), PAGE, re.DOTALL))


_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hashes(b'script')}",
        f"style-src {_hashes(b'style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # so that no text can become HTML
        "trusted-types 'none'",
    )
)
HEADERS: Final = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    ("Cache-Control", "no-store"),
)
