"""Checks the file with the token that the worker's owner lends to jobs."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hypha_contracts.findings import Finding, failure, ok
from hypha_contracts.node_config import HubTokenConfig

_OTHERS: Final = 0o077


def check(token: HubTokenConfig | None) -> Iterator[Finding]:
    """Yield whether the token can be read, and by nobody else. Nothing if none is lent."""
    if token is not None:
        yield judge(token.file)


def judge(path: Path) -> Finding:
    """Return whether a file holds a token that only this user can read."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        return failure(f"hub_token.file {path}: {reason}", "Correct the path, or remove hub_token.")
    if mode & _OTHERS:
        return failure(f"hub_token.file {path} is open to other users (mode {mode:o})", f"Run `chmod 600 {path}`.")
    if not text or len(text.split()) > 1:
        return failure(f"hub_token.file {path} does not hold a token", "Write the token alone into the file.")
    return ok(f"hub_token.file {path} is private (mode {mode:o})")
