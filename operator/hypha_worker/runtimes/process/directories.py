"""Directories that the node makes for jobs in a work directory where the owner may keep files of their own.

The node removes only directories whose name holds a task id and that contain the node's marker. The functions block.
"""

import logging
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final
from uuid import UUID

from hypha_network.rate_limited_log import RateLimitedLogger

_log = RateLimitedLogger(logging.getLogger(__name__))

_MARKER: Final = ".hypha-worker"
_MARKER_TEXT: Final = "The Hypha worker made this directory for a job and removes it after the job.\n"


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
    for _ in range(2):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except (OSError, RecursionError):  # missing permissions, or too deep for a path or the stack
            subprocess.run(["chmod", "-R", "u+rwX", "--", str(path)], check=False, stderr=subprocess.DEVNULL)
            subprocess.run(["rm", "-rf", "--", str(path)], check=False, stderr=subprocess.DEVNULL)
    if path.exists():
        _log.warning(str(path), "it cannot be removed")
