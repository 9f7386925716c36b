"""The private directory of a node, on any platform, and the names of files in it."""

import os
import stat
from pathlib import Path
from typing import Final

from hypha_worker.errors import NodeError
from hypha_worker.work_dir import cannot_use

LEDGER_FILE: Final = "leases.json"
STATUS_SOCKET: Final = "status.sock"
"""The socket at which the node shows its state to its owner."""


def find_state_dir(work_dir: Path, peer_id: str) -> Path:
    """Return the directory for jobs and state of a node with this peer id, without making it."""
    try:
        shared = work_dir.stat().st_mode & stat.S_IWOTH
    except OSError:  # it does not exist yet, or this user may not see it
        shared = 0
    return work_dir / f"hypha-worker-{peer_id[-8:]}" if shared else work_dir


def prepare_state_dir(work_dir: Path, peer_id: str) -> Path:
    """Make and return the private directory for jobs and state. NodeError if it cannot be used.

    In a directory that every user may write to, such as /tmp, the node uses a private directory of its own.
    """
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = find_state_dir(work_dir, peer_id)
        if private == work_dir:
            return work_dir
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
    except OSError as error:
        raise cannot_use(work_dir, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NodeError(f"{private}: not a private directory of this user. Remove it or choose another work_dir.")
    return private
