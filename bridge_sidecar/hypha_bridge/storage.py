"""Files on their way into the work directory, and how much of the job's storage they may take.

Nothing is flushed to the disk: a job ends with its machine, and its files survive the end of any process.
"""

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from hypha_bridge.errors import storage_exceeded
from hypha_bridge.paths import WorkDir

_MEASURED_FOR_S: Final = 5.0
_COPY_BYTES: Final = 64 * 1024 * 1024
_FICLONE: Final = 0x40049409


class Storage:
    """What the job's directories take on disk, and the limit.

    Walking them is dear, so a measurement counts for a while, plus what was written since; before anything is refused
    the directories are measured again. Thread-safe.
    """

    def __init__(self, directories: tuple[Path, ...], limit_bytes: int | None) -> None:
        self._directories = directories
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._measured_at = -_MEASURED_FOR_S

    def grow(self, size_bytes: int) -> None:
        """Account for bytes about to be written; BridgeError (507) if they do not fit."""
        self._check(size_bytes, size_bytes)

    def check(self, size_bytes: int) -> None:
        """Refuse at once what cannot fit; BridgeError (507)."""
        self._check(size_bytes, 0)

    def _check(self, wanted_bytes: int, counted_bytes: int) -> None:
        if self._limit_bytes is None:
            return
        with self._lock:
            fits = self._used_bytes + wanted_bytes <= self._limit_bytes
            if not fits or time.monotonic() - self._measured_at > _MEASURED_FOR_S:
                self._used_bytes = sum(_disk_usage(directory) for directory in self._directories)
                self._measured_at = time.monotonic()
            if self._used_bytes + wanted_bytes > self._limit_bytes:
                raise storage_exceeded(
                    f"{wanted_bytes} more bytes exceed the job's storage: {self._used_bytes} of {self._limit_bytes} "
                    "bytes are used; delete files in the work directory, or ask for more storage in the job's resources"
                )
            self._used_bytes += counted_bytes


def _disk_usage(directory: Path) -> int:
    """Bytes on disk below a directory; what vanishes meanwhile or may not be read counts nothing."""
    total = 0
    seen: set[int] = set()
    pending = [os.fspath(directory)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif status.st_ino not in seen:
                        seen.add(status.st_ino)
                        total += status.st_blocks * 512
    return total


class StagedFile:
    """A file being written where the job cannot see it: 0600, hashed on the way, gone unless it is taken whole."""

    def __init__(self, directory: Path, storage: Storage, max_bytes: float) -> None:
        self._fd, name = tempfile.mkstemp(dir=directory)
        self.path = Path(name)
        self.size_bytes = 0
        self._storage = storage
        self._max_bytes = max_bytes
        self._sha256 = hashlib.sha256()

    @property
    def checksum(self) -> str:
        """The digest of what was written, as `sha256:<hex>`."""
        return f"sha256:{self._sha256.hexdigest()}"

    def write(self, data: bytes | memoryview) -> None:
        """Append; BridgeError (507) if that does not fit into the job's storage or on the disk."""
        size = len(data)
        if self.size_bytes + size > self._max_bytes:
            raise storage_exceeded(
                f"a file of more than {self._max_bytes:g} bytes; ask for more storage in the job's resources"
            )
        self._storage.grow(size)
        self._sha256.update(data)
        with disk_full_is_storage_exceeded():
            written = os.write(self._fd, data)
            while written < size:
                written += os.write(self._fd, memoryview(data)[written:])
        self.size_bytes += size

    def restart(self) -> None:
        """Throw away what was written."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)
        if kind is not None:
            self.path.unlink(missing_ok=True)


class JobFiles(NamedTuple):
    """Where a job's files are: its own directory, ours beside it (same file system), and what both may take."""

    work_dir: WorkDir
    staging: Path
    storage: Storage

    def stage(self, max_bytes: float = math.inf) -> StagedFile:
        """Begin a file that the job cannot see, and that may grow no larger than that."""
        return StagedFile(self.staging, self.storage, max_bytes)


@contextlib.contextmanager
def disk_full_is_storage_exceeded() -> Iterator[None]:
    """Translate a full disk; BridgeError (507)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_exceeded(
                "the disk of the work directory is full; tell the operator of this worker"
            ) from error
        raise


def snapshot(source_fd: int, files: JobFiles) -> Path:
    """Copy an open file to one of ours (sharing blocks where the file system can) and return it; BridgeError (507)."""
    size = os.fstat(source_fd).st_size
    if size > (free := shutil.disk_usage(files.staging).free):  # sparse, or there is no limit
        raise storage_exceeded(f"a file of {size} bytes cannot be copied aside: the disk has {free} left")
    fd, name = tempfile.mkstemp(dir=files.staging)
    try:
        with disk_full_is_storage_exceeded():
            if not _clone(source_fd, fd):
                files.storage.grow(size)
                offset = 0
                while count := os.sendfile(fd, source_fd, offset, min(_COPY_BYTES, size - offset)):
                    offset += count
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    return Path(name)


def _clone(source_fd: int, fd: int) -> bool:
    try:
        fcntl.ioctl(fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True
