"""Checks the work directory: whether this user can write to it, and who else can."""

import os
import pwd
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypha_contracts.findings import Finding, failure, ok, warning
from hypha_worker.errors import NodeError


@dataclass(frozen=True)
class WorkDir:
    """The state of a directory that the node writes to.

    Attributes:
        key: the key of the configuration that names it.
        mode: its permission bits; None if it does not exist.
        problem: why this user cannot write to it or make it, in the kernel's words.
        unusable: files in it that this user may not write to, though a node must.
    """

    path: Path
    key: str
    user: str
    mode: int | None
    problem: str | None
    unusable: tuple[Path, ...] = ()


def inspect(path: Path, names: tuple[str, ...] = (), key: str = "work_dir") -> WorkDir:
    """Return the state of a directory. `names` are the files and directories in it that a node must write to.

    To be sure, it makes a temporary file without a name.
    """
    user = _user()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return WorkDir(path, key, user, None, _cannot_make(path))
    except OSError as error:
        return WorkDir(path, key, user, None, error.strerror)
    if not stat.S_ISDIR(mode):
        return WorkDir(path, key, user, stat.S_IMODE(mode), "not a directory")
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        return WorkDir(path, key, user, stat.S_IMODE(mode), error.strerror)
    return WorkDir(
        path, key, user, stat.S_IMODE(mode), None, tuple(path / name for name in names if _refuses(path / name))
    )


def cannot_use(path: Path, error: OSError) -> NodeError:
    """Return the error of a node that failed to use its work directory."""
    return NodeError(str(judge(WorkDir(path, "work_dir", _user(), None, error.strerror))))


def judge(found: WorkDir) -> Finding:
    """Return whether a node can use the directory."""
    where = f"{found.key} {found.path}"
    if found.problem:
        return failure(
            f"{where}: {found.problem}",
            f"Choose a directory that user {found.user} can write to, or make it one: "
            f"`sudo install -d -m 750 -o {found.user} {found.path}`.",
        )
    if found.unusable:
        return failure(
            f"{where}: user {found.user} may not write to {', '.join(path.name for path in found.unusable)}, "
            "which a node of another user made",
            f"Run `sudo chown -R {found.user} {found.path}`, or run the worker as that user.",
        )
    if found.mode is None:
        return ok(f"{where} does not exist yet, and the node can make it")
    if found.mode & stat.S_IWOTH:
        return ok(f"{where} may be written by every user, so the node uses a private directory in it")
    if found.mode & stat.S_IWGRP:
        return warning(
            f"{where} may be written by its group (mode {found.mode:o}), which can then replace files of jobs",
            f"Run `chmod 750 {found.path}`.",
        )
    return ok(f"{where} can be written by user {found.user} alone (mode {found.mode:o})")


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _refuses(path: Path) -> bool:
    return path.exists() and not os.access(path, os.W_OK)


def _cannot_make(path: Path) -> str | None:
    """Return why a missing directory cannot be made, from the nearest directory above it."""
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        return f"{above} is not a directory"
    return None if os.access(above, os.W_OK | os.X_OK) else f"it does not exist, and {above} is not writable"
