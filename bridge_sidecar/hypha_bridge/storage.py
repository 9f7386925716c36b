"""Files on their way into the work directory, and the limit of the job's storage.

The bridge does not flush files to the disk, because a job ends with its machine and files survive the end of a process.
"""

import contextlib
import errno
import fcntl
import hashlib
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
from hypha_executor.safetensors import open_header

_MEASURED_FOR_S: Final = 5.0
_COPY_BYTES: Final = 64 * 1024 * 1024
_FICLONE: Final = 0x40049409


class Storage:
    """The disk usage of the job's directories, and its limit.

    Measuring the directories is expensive, so a measurement is reused for some seconds and writes are added to it. The
    storage measures again before it refuses anything. Thread-safe.
    """

    def __init__(self, directories: tuple[Path, ...], limit_bytes: int | None) -> None:
        self._directories = directories
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._used_bytes = 0
        self._measured_at = -_MEASURED_FOR_S

    def check(self, wanted_bytes: int, *, reserve: bool = False) -> None:
        """Check that bytes fit, and with `reserve` count them as used from now on; BridgeError (507)."""
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
                    "bytes are used. Delete files in the work directory, or ask for more storage for the job."
                )
            if reserve:
                self._used_bytes += wanted_bytes


def _disk_usage(directory: Path) -> int:
    """Return the bytes on disk below a directory, without files that vanish meanwhile or cannot be read."""
    total = 0
    inodes: set[int] = set()
    pending = [os.fspath(directory)]
    while pending:
        with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    elif status.st_ino not in inodes:
                        inodes.add(status.st_ino)
                        total += status.st_blocks * 512
    return total


class StagedFile:
    """A file that is written where the job cannot see it. It is deleted if the context ends with an error."""

    def __init__(self, directory: Path, storage: Storage) -> None:
        self._fd, name = tempfile.mkstemp(dir=directory)
        self.path = Path(name)
        self.size_bytes = 0
        self._storage = storage
        self._sha256 = hashlib.sha256()

    @property
    def checksum(self) -> str:
        """The digest of the bytes written, as `sha256:<hex>`."""
        return f"sha256:{self._sha256.hexdigest()}"

    def write(self, data: bytes | memoryview) -> None:
        """Append data; BridgeError (507) if it exceeds the job's storage or the disk."""
        size = len(data)
        self._storage.check(size, reserve=True)
        self._sha256.update(data)
        with disk_full_is_storage_exceeded():
            written = os.write(self._fd, data)
            while written < size:
                written += os.write(self._fd, memoryview(data)[written:])
        self.size_bytes += size

    def restart(self) -> None:
        """Discard the bytes written."""
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
    """A job's work directory, the bridge's own on the same file system, and the storage of both."""

    work_dir: WorkDir
    staging: Path
    storage: Storage

    def stage(self) -> StagedFile:
        """Begin a file that the job cannot see."""
        return StagedFile(self.staging, self.storage)


def check_complete(path: Path) -> None:
    """Check that a file is a complete SafeTensors file, because a stream that breaks off looks like its end.

    Raises:
        TruncatedFileError: the file is only the beginning of one.
        MalformedFileError: the file is no SafeTensors file.
    """
    descriptor, _ = open_header(path)
    os.close(descriptor)


@contextlib.contextmanager
def disk_full_is_storage_exceeded() -> Iterator[None]:
    """Raise BridgeError (507) if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_exceeded(
                "the disk of the work directory is full. Ask the worker's owner to free space."
            ) from error
        raise


def snapshot(source_fd: int, files: JobFiles) -> Path:
    """Copy an open file and return the copy, which shares blocks if the file system can; BridgeError (507)."""
    size = os.fstat(source_fd).st_size
    if size > (free := shutil.disk_usage(files.staging).free):  # a sparse file, or a job without a limit
        raise storage_exceeded(f"the bridge cannot copy a file of {size} bytes, because the disk has {free} left")
    fd, name = tempfile.mkstemp(dir=files.staging)
    try:
        with disk_full_is_storage_exceeded():
            if not _clone(source_fd, fd):
                files.storage.check(size, reserve=True)
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
