"""Looks at Unix sockets in a work directory. The functions block."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from hypha_worker.runtimes.process.launch import CONNECTOR_SOCKET
from hypha_worker.state_dir import STATUS_SOCKET


def find_exposed(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield the sockets of node and bridges that others than this user may use, and why."""
    for path in (directory / CONNECTOR_SOCKET, directory / STATUS_SOCKET, *directory.glob("hypha-*/bridge.sock")):
        try:
            found = path.lstat()
        except OSError:
            continue
        if not stat.S_ISSOCK(found.st_mode):
            yield path, "is not a socket"
        elif found.st_mode & 0o077:
            yield path, f"may be used by other users (mode {stat.S_IMODE(found.st_mode):o})"
        elif found.st_uid != os.geteuid() and os.geteuid() != 0:
            yield path, f"belongs to user {found.st_uid}"


def try_socket(path: Path) -> None:
    """Listen on a private socket and connect to it. OSError."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(1)
        client.connect(os.fspath(path))
