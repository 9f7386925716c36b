"""Public files of the model hub, kept for the next job: a directory that the bridges of a worker's jobs share.

A file is known by the hash of its content, which the hub names before each download. Whatever the directory holds, a
job gets only bytes with that hash. No error of the cache ends a download: the bridge then downloads the file itself.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Self

from hypha_bridge.errors import source_failed
from hypha_contracts.bridge_config import CacheConfig

logger = logging.getLogger(__name__)

WAIT_S: Final = 300.0
"""How long a bridge waits for another one that downloads the same file, before it downloads the file itself."""
_POLL_S: Final = 0.1
_CHUNK_BYTES: Final = 1 << 20
_SPARE_BYTES: Final = 16 << 20
"""Space that the cache leaves free on its volume, because the file system needs some for each file."""
_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`."""
_KINDS: Final = {64: "sha256", 40: "git"}
"""The hub's entity tag is the SHA-256 of a large file, or the id of a small file in Git (SHA-1)."""
_ENTRY: Final = re.compile(r"sha256-[0-9a-f]{64}|git-[0-9a-f]{40}")
_PARTIAL: Final = ".partial-"
_ROOM_LOCK: Final = ".lock"
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE: Final = 0o660
"""Bridges of other users of the volume's group share the files."""


class Content(NamedTuple):
    """The content of a file: its kind of hash, the hash, and how many bytes it has."""

    kind: str
    digest: str
    size_bytes: int

    @classmethod
    def of(cls, etag: str | None, size_bytes: int | None) -> Self | None:
        """Return what the hub's entity tag says about a file. None if it is no hash."""
        digest = (etag or "").lower()
        kind = _KINDS.get(len(digest))
        if kind is None or size_bytes is None or not _ENTRY.fullmatch(f"{kind}-{digest}"):
            return None
        return cls(kind, digest, size_bytes)

    @property
    def name(self) -> str:
        """The name of the file in the cache."""
        return f"{self.kind}-{self.digest}"

    def copy(self, source_fd: int, target_fd: int) -> bool:
        """Copy an open file and return whether the bytes are those of this content."""
        if self.kind == "git":
            hashed = hashlib.sha1(b"blob %d\0" % self.size_bytes, usedforsecurity=False)
        else:
            hashed = hashlib.sha256()
        left = self.size_bytes
        while left and (chunk := os.read(source_fd, min(left, _CHUNK_BYTES))):
            hashed.update(chunk)
            _write(target_fd, chunk)
            left -= len(chunk)
        return not left and not os.read(source_fd, 1) and hashed.hexdigest() == self.digest


class Cache:
    """A directory of files that take at most so many bytes together, and fit its volume. Safe for many bridges."""

    def __init__(self, config: CacheConfig, stopping: threading.Event, wait_s: float = WAIT_S) -> None:
        self._directory = config.directory
        self._max_bytes = config.max_bytes
        self._stopping = stopping
        self._wait_s = wait_s
        with contextlib.suppress(OSError):  # then every use of it says why
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def turn(self, content: Content) -> Iterator[bool]:
        """Wait while another bridge downloads the same file. Yield whether this bridge may keep what it downloads."""
        with self._locked(f".lock-{content.digest[:2]}", self._wait_s) as held:
            yield held

    def take(self, content: Content, target: Path) -> bool:
        """Copy a file out of the cache; False if the cache has no such file. OSError if the target's disk is full."""
        entry = self._directory / content.name
        source_fd = _open_file(entry)
        if source_fd is None:
            return False
        with _closing(source_fd):
            try:
                intact = _copied(content, source_fd, target)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                logger.warning("the cache cannot be used: %s", error)
                return False
            with contextlib.suppress(OSError):
                if intact:
                    os.utime(source_fd)  # the least recently used files are removed first
                else:
                    logger.warning("the cache's file %s is damaged, so the bridge removes it", entry)
                    entry.unlink()
        return intact

    def keep(self, content: Content, path: Path) -> None:
        """Copy a downloaded file into the cache if it has room for it and the bytes are those of the content."""
        try:
            begun = self._begin(content.size_bytes)
            if begun is None:
                return
            fd, partial = begun
            with _closing(fd):
                try:
                    self._fill(content, path, fd, partial)
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the cache does not keep a file: %s", error)

    def _fill(self, content: Content, path: Path, fd: int, partial: Path) -> None:
        with path.open("rb", buffering=0) as source:
            if not content.copy(source.fileno(), fd):
                logger.warning("the hub sent another content than it announced, which the cache does not keep")
                return
        os.fsync(fd)
        os.fchmod(fd, _MODE)
        partial.rename(self._directory / content.name)

    def _begin(self, size_bytes: int) -> tuple[int, Path] | None:
        """Make room for a file and begin it, so that it counts with its full size at once. None if there is no room."""
        with self._locked(_ROOM_LOCK, self._wait_s) as held:
            if not held or not self._make_room(size_bytes):
                return None
            fd, name = tempfile.mkstemp(prefix=_PARTIAL, dir=self._directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)  # until it is closed, so that no other bridge takes it for abandoned
                os.ftruncate(fd, size_bytes)
            except OSError:
                os.close(fd)
                Path(name).unlink()
                raise
            return fd, Path(name)

    def _make_room(self, wanted_bytes: int) -> bool:
        """Remove abandoned downloads and the least recently used files until there is room; return False if not."""
        entries, used, unwritten = [], 0, 0
        for item in self._files():
            status = item.stat(follow_symlinks=False)
            if item.name.startswith(_PARTIAL) and _is_abandoned(Path(item.path)):
                Path(item.path).unlink(missing_ok=True)
                continue
            used += status.st_size
            if _ENTRY.fullmatch(item.name):
                entries.append((status.st_mtime, status.st_size, Path(item.path)))
            else:  # another bridge has begun it, and the rest of it will take free space
                unwritten += max(0, status.st_size - status.st_blocks * _BLOCK_BYTES)
        free = shutil.disk_usage(self._directory).free - unwritten - _SPARE_BYTES
        limit = min(self._max_bytes, used + free)
        if used - sum(size for _, size, _ in entries) + wanted_bytes > limit:
            return False
        for _, size, path in sorted(entries):
            if used + wanted_bytes <= limit:
                break
            path.unlink(missing_ok=True)
            used -= size
        return True

    def _files(self) -> "Iterator[os.DirEntry[str]]":
        """Yield the files that bridges have put there. Others in the directory belong to their owner."""
        with os.scandir(self._directory) as items:
            yield from (item for item in items if item.name.startswith(_PARTIAL) or _ENTRY.fullmatch(item.name))

    @contextlib.contextmanager
    def _locked(self, name: str, wait_s: float) -> Iterator[bool]:
        """Hold a lock that other processes may hold. Yield False if it is held for too long, or cannot be used."""
        try:
            fd = os.open(self._directory / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
        except OSError as error:
            logger.warning("the cache cannot be used: %s", error)
            yield False
            return
        with _closing(fd):
            with contextlib.suppress(OSError):
                os.fchmod(fd, _MODE)  # whatever the mask of new files
            yield self._acquire(fd, time.monotonic() + wait_s)

    def _acquire(self, fd: int, deadline: float) -> bool:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                if self._stopping.wait(_POLL_S):
                    raise source_failed("the bridge is stopping") from None
            except OSError as error:  # a file system without locks
                logger.warning("the cache cannot be used: %s", error)
                return False
            else:
                return True


def fetch(cache: Cache, content: Content, target: Path, download: Callable[[], Path]) -> tuple[Path, bool]:
    """Return a file and whether it came out of the cache. Otherwise it is downloaded and kept for the next job."""
    if cache.take(content, target):
        return target, True
    with cache.turn(content) as held:
        if cache.take(content, target):  # another bridge has kept it meanwhile
            return target, True
        path = download()
        if held:
            cache.keep(content, path)
        return path, False


def _copied(content: Content, source_fd: int, target: Path) -> bool:
    """Copy an open file to a new one and return whether the bytes are the content. Otherwise the new one is removed."""
    target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    intact = False
    try:
        intact = content.copy(source_fd, target_fd)
    finally:
        os.close(target_fd)
        if not intact:
            target.unlink()
    return intact


def _open_file(path: Path) -> int | None:
    """Open a regular file; None if there is none that can be read."""
    try:
        fd = os.open(path, _OPEN)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            logger.warning("the cache cannot be used: %s", error)
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _is_abandoned(partial: Path) -> bool:
    """Return whether the bridge that wrote a file is gone. A bridge that writes holds a lock on its file."""
    fd = _open_file(partial)
    if fd is None:
        return False
    with _closing(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])
