"""Directories that the node makes for jobs in a work directory where the owner may keep files of their own.

The node removes only directories whose name holds a task id and that contain the node's marker. The functions block.
"""

import logging
import secrets
import stat
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final
from uuid import UUID

from hypha_network.rate_limited_log import RateLimitedLogger

_log = RateLimitedLogger(logging.getLogger(__name__))

_MARKER: Final = ".hypha-worker"
_MARKER_TEXT: Final = "The Hypha worker made this directory for a job and removes it.\n"


def make_marked(directory: Path) -> None:
    """Make a private directory with the marker. OSError if it exists or cannot be made."""
    directory.mkdir(mode=0o700)
    (directory / _MARKER).write_text(_MARKER_TEXT)


def is_of_node(path: Path, prefix: str = "") -> bool:
    """Whether a node made this directory for a job. It is empty if the node died before it wrote the marker."""
    name = path.name.removeprefix(prefix)
    try:
        return (
            path.name == f"{prefix}{UUID(name)}"
            and stat.S_ISDIR(path.lstat().st_mode)
            and ((path / _MARKER).exists() or not any(path.iterdir()))
        )
    except (ValueError, OSError):
        return False


def remove_tree(path: Path) -> None:
    """Remove a directory whatever its contents. Logs a directory that cannot be removed."""
    try:
        _empty(path)
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning(str(path), "it cannot be removed: %s", error)


def _empty(root: Path) -> None:
    """Remove the contents of a directory."""
    prefix = f".removed-{secrets.token_hex(8)}-"
    names = (f"{prefix}{number}" for number in count())
    root.chmod(0o700)
    while entries := list(root.iterdir()):
        for entry in entries:
            if _is_directory(entry):
                _dissolve(entry, root, names)
            else:
                entry.unlink()


def _dissolve(directory: Path, root: Path, names: Iterator[str]) -> None:
    """Remove a directory, and move the directories in it to the root, so that no path gets too long."""
    directory.chmod(0o700)
    for entry in list(directory.iterdir()):
        if _is_directory(entry):
            entry.chmod(0o700)  # moving a directory writes to it
            entry.rename(root / next(names))
        else:
            entry.unlink()
    directory.rmdir()


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)
