"""Paths inside the job's work directory, which hostile job code may change at any time.

The bridge checks a path as text, then opens its directories one by one, each relative to the descriptor of the one
before and never through a symbolic link. So a job cannot make the bridge read or write outside the work directory.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hypha_bridge.errors import BridgeError, invalid_request

_MAX_PATH_BYTES: Final = 2048
_MAX_NAME_BYTES: Final = 255
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parse(path: str) -> tuple[str, ...]:
    """Return the names along a relative path ("" and "." are the work directory itself); BridgeError (400)."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError as error:
        raise invalid_request(f"path {path!r} is not valid Unicode") from error
    if len(encoded) > _MAX_PATH_BYTES:
        raise invalid_request(f"a path has at most {_MAX_PATH_BYTES} bytes, not {len(encoded)}")
    if not path.isprintable():
        raise invalid_request(f"path {path!r} holds unprintable characters")
    if path.startswith("/"):
        raise invalid_request(f"path {path!r} is absolute; name it relative to the work directory")
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in names:
        raise invalid_request(f"path {path!r} leads out of its directory; leave out '..'")
    if any(len(name.encode()) > _MAX_NAME_BYTES for name in names):
        raise invalid_request(f"a name in path {path!r} has more than {_MAX_NAME_BYTES} bytes")
    return names


def parse_file(path: str) -> tuple[str, ...]:
    """Return the names along a file's relative path, at least one; BridgeError (400)."""
    names = parse(path)
    if not names or path.endswith(("/", "/.")):
        raise invalid_request(f"path {path!r} does not name a file")
    return names


class WorkDir:
    """The job's work directory, which stays open as long as the bridge runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def open_file(self, names: tuple[str, ...]) -> int:
        """Open a regular file for reading and return its descriptor; BridgeError (400, 404)."""
        with self._parent(names, create=False) as directory, _translated(names):
            fd = os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise invalid_request(f"{'/'.join(names)!r} is not a regular file")
            return fd

    def place(self, source: Path, names: tuple[str, ...]) -> None:
        """Move a complete staged file here and replace any file of that name; BridgeError (400)."""
        with self._parent(names, create=True) as directory, _translated(names):
            os.rename(source, names[-1], dst_dir_fd=directory)

    def make_directory(self, names: tuple[str, ...]) -> None:
        """Create a directory and its missing parents; BridgeError (400)."""
        with self._parent((*names, "."), create=True):
            pass

    @contextlib.contextmanager
    def _parent(self, names: tuple[str, ...], *, create: bool) -> Iterator[int]:
        fd = os.dup(self._fd)
        try:
            for name in names[:-1]:
                with _translated(names):
                    if create:
                        with contextlib.suppress(FileExistsError):
                            os.mkdir(name, 0o700, dir_fd=fd)
                    below = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)


_REFUSED: Final = {
    errno.ELOOP: "is or passes a symbolic link; use a path without links",
    errno.ENOTDIR: "passes something that is not a directory (a file or a symbolic link)",
    errno.EISDIR: "is a directory",
    errno.ENAMETOOLONG: "is too long",
    errno.ENXIO: "is not a regular file",
    errno.EACCES: "is not accessible to the bridge",
}


@contextlib.contextmanager
def _translated(names: tuple[str, ...]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = "/".join(names)
        if error.errno == errno.ENOENT:
            raise BridgeError(404, "not_found", f"there is no {path!r} in the work directory") from error
        if error.errno in _REFUSED:
            raise invalid_request(f"{path!r} {_REFUSED[error.errno]}") from error
        raise
