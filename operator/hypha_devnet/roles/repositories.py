"""Model repositories in a directory: `<owner>/<name>/...`; other revisions are `<owner>/<name>@<revision>/...`."""

import hashlib
import hmac
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rtoml

DEFAULT_REVISION: Final = "main"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class NotFoundError(Exception):
    """The repository, revision or file does not exist, or is private; `code` is the hub's error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class File:
    """A file of a repository: its name (the path inside the repository), path, size, and SHA-256."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """A repository at a revision. The commit is a hash of the contents, so it changes with them."""

    repository: str
    commit: str
    files: Mapping[str, File]
    private: bool

    def file(self, name: str) -> File:
        """Return the file of a name; NotFoundError."""
        try:
            return self.files[name]
        except KeyError:
            raise NotFoundError("EntryNotFound", f"{self.repository} has no file {name!a}") from None


class Repositories:
    """The repositories under a root. Safe to use from several threads."""

    def __init__(self, root: Path, tokens: Mapping[str, tuple[str, ...]]) -> None:
        """Serve a root.

        Args:
            root: the directory of the repositories.
            tokens: by private repository, the tokens that may read it.

        Raises:
            ValueError: the root is not a directory.
        """
        if not root.is_dir():
            raise ValueError(f"{root} is not a directory")
        self._root = root.resolve()
        self._tokens = tokens
        self._digests: dict[tuple[Path, int, int, int], str] = {}
        self._lock = threading.Lock()

    def snapshot(self, repository: str, revision: str, token: str | None) -> Snapshot:
        """Return a repository at a branch, tag or commit.

        Raises NotFoundError. The error does not tell a private repository from one that does not exist.
        """
        directory = self._root / repository
        if not _NAME.fullmatch(repository) or not directory.is_dir() or not self._may_read(repository, token):
            raise NotFoundError("RepoNotFound", "there is no such repository, or it needs another token")
        for name, candidate in self.revisions(repository).items():
            snapshot = self._read(repository, candidate)
            if revision in (name, snapshot.commit):
                return snapshot
        raise NotFoundError("RevisionNotFound", f"{repository} has no revision {revision!a}")

    def revisions(self, repository: str) -> dict[str, Path]:
        """Return the revisions of an existing repository, and their directories."""
        directory = self._root / repository
        found = {DEFAULT_REVISION: directory}
        for path in sorted(directory.parent.glob(f"{directory.name}@*")):
            revision = path.name.partition("@")[2]
            if path.is_dir() and _REVISION.fullmatch(revision):
                found[revision] = path
        return found

    def _may_read(self, repository: str, token: str | None) -> bool:
        accepted = self._tokens.get(repository)
        if accepted is None:
            return True
        return any(hmac.compare_digest(one.encode(), (token or "").encode()) for one in accepted)

    def _read(self, repository: str, directory: Path) -> Snapshot:
        files = {}
        for folder, folders, names in os.walk(directory):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file() and not path.is_symlink():
                    inside = path.relative_to(directory).as_posix()
                    files[inside] = File(inside, path, path.stat().st_size, self._sha256(path))
        listing = "".join(f"{file.sha256} {file.name}\n" for file in files.values())
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        return Snapshot(repository, commit, files, repository in self._tokens)

    def _sha256(self, path: Path) -> str:
        status = path.stat()
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key not in self._digests:
                with path.open("rb") as file:
                    self._digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
            return self._digests[key]


def read_tokens(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the private repositories from a TOML file (`"owner/name" = ["token", ...]`); ValueError, OSError."""
    tokens = rtoml.loads(path.read_text())
    for repository, accepted in tokens.items():
        if not isinstance(accepted, list) or not all(isinstance(one, str) and one for one in accepted):
            raise ValueError(f'{path}: {repository!r}: write it as "owner/name" = ["token", ...]')
    return {repository: tuple(accepted) for repository, accepted in tokens.items()}
