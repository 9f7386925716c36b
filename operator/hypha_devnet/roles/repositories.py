"""Model repositories in a directory: `<owner>/<name>/...`; other revisions are `<owner>/<name>@<revision>/...`."""

import hashlib
import hmac
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import rtoml

DEFAULT_REVISION: Final = "main"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


class HubError(Exception):
    """A refusal as the real hub words it: a status, and the hub's error code (empty for a wrong token)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def not_found(code: str, message: str) -> HubError:
    """Return the error for something that does not exist."""
    return HubError(404, code, message)


@dataclass(frozen=True)
class File:
    """A file of a repository: its name (the path inside the repository), path, size, and SHA-256."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Access:
    """Who may read a repository that is not public: those with one of the tokens.

    Of a private repository, others do not learn that it exists. Of a gated one, everybody sees the list of its files.
    """

    tokens: tuple[str, ...]
    gated: bool = False

    def admits(self, token: str | None) -> bool:
        """Return whether a token may read the repository's files."""
        return _is_among(token, self.tokens)


@dataclass(frozen=True)
class Snapshot:
    """A repository at a revision. The commit is a hash of the contents, so it changes with them."""

    repository: str
    commit: str
    files: Mapping[str, File]
    access: Access | None

    @property
    def gated(self) -> bool:
        """Whether everybody may see the repository, and some may read its files."""
        return self.access is not None and self.access.gated

    @property
    def private(self) -> bool:
        """Whether others do not learn that the repository exists."""
        return self.access is not None and not self.access.gated

    def file(self, name: str, token: str | None) -> File:
        """Return the file of a name; HubError."""
        if self.access and not self.access.admits(token):
            raise _restricted(self.repository, token)
        try:
            return self.files[name]
        except KeyError:
            raise not_found("EntryNotFound", f"{self.repository} has no file {name!a}") from None


class Repositories:
    """The repositories under a root. Safe to use from several threads."""

    def __init__(self, root: Path, access: Mapping[str, Access]) -> None:
        """Serve a root.

        Args:
            root: the directory of the repositories.
            access: by repository that is not public, who may read it.

        Raises:
            ValueError: the root is not a directory.
        """
        if not root.is_dir():
            raise ValueError(f"{root} is not a directory")
        self._root = root.resolve()
        self._access = access
        self._known = [token for one in access.values() for token in one.tokens]
        self._digests: dict[tuple[Path, int, int, int], str] = {}
        self._lock = threading.Lock()

    def snapshot(self, repository: str, revision: str, token: str | None) -> Snapshot:
        """Return a repository at a branch, tag or commit.

        Raises HubError. The error does not tell a private repository from one that does not exist.
        """
        if token is not None and not _is_among(token, self._known):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        directory = self._root / repository
        if not _NAME.fullmatch(repository) or not directory.is_dir() or not self._may_see(repository, token):
            # The real hub answers 401 where a token might help.
            status = 401 if token is None else 404
            raise HubError(status, "RepoNotFound", "there is no such repository, or it needs another token")
        for name, candidate in self.revisions(repository).items():
            snapshot = self._read(repository, candidate)
            if revision in (name, snapshot.commit):
                return snapshot
        raise not_found("RevisionNotFound", f"{repository} has no revision {revision!a}")

    def revisions(self, repository: str) -> dict[str, Path]:
        """Return the revisions of an existing repository, and their directories."""
        directory = self._root / repository
        found = {DEFAULT_REVISION: directory}
        for path in sorted(directory.parent.glob(f"{directory.name}@*")):
            revision = path.name.partition("@")[2]
            if path.is_dir() and _REVISION.fullmatch(revision):
                found[revision] = path
        return found

    def _may_see(self, repository: str, token: str | None) -> bool:
        access = self._access.get(repository)
        return access is None or access.gated or access.admits(token)

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
        return Snapshot(repository, commit, files, self._access.get(repository))

    def _sha256(self, path: Path) -> str:
        status = path.stat()
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        with self._lock:
            if key not in self._digests:
                with path.open("rb") as file:
                    self._digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
            return self._digests[key]


def _is_among(token: str | None, accepted: Iterable[str]) -> bool:
    return any(hmac.compare_digest(one.encode(), (token or "").encode()) for one in accepted)


def _restricted(repository: str, token: str | None) -> HubError:
    if token is None:
        message = (
            f"Access to model {repository} is restricted. You must have access to it and be authenticated to access "
            "it. Please log in."
        )
        return HubError(401, "GatedRepo", message)
    message = (
        f"Access to model {repository} is restricted and you are not in the authorized list. Visit its page to ask for "
        "access."
    )
    return HubError(403, "GatedRepo", message)


def read_access(path: Path) -> dict[str, Access]:
    """Read who may read which repositories from a TOML file; ValueError, OSError.

    `"owner/name" = ["token", ...]` is private, `"owner/name" = { gated = ["token", ...] }` is gated.
    """
    return {repository: _access(path, repository, value) for repository, value in rtoml.loads(path.read_text()).items()}


def _access(path: Path, repository: str, value: object) -> Access:
    gated = isinstance(value, dict) and value.keys() == {"gated"}
    tokens = value["gated"] if isinstance(value, dict) and gated else value
    if not isinstance(tokens, list) or not all(isinstance(one, str) and one for one in tokens):
        form = '"owner/name" = ["token", ...] if it is private, or { gated = ["token", ...] }'
        raise ValueError(f"{path}: {repository!r}: write it as {form}")
    return Access(tuple(tokens), gated)
