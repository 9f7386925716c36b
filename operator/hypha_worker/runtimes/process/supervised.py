"""Starts the supervisors of jobs and finds those that an earlier node started. The functions block."""

import contextlib
import fcntl
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypha_worker.runtimes.process import supervisor
from hypha_worker.runtimes.process.launch import JobPaths

_SUPERVISOR_START_S: Final = 10.0


@dataclass
class Supervised:
    """A job whose supervisor runs.

    Attributes:
        pidfd: readable once the supervisor has ended.
        process: the supervisor, if this process started it.
        notify_fd: readable once the executor runs, if this process started the supervisor.
    """

    paths: JobPaths
    pidfd: int
    process: subprocess.Popen[bytes] | None = None
    notify_fd: int | None = None


def start(paths: JobPaths) -> Supervised:
    """Start the supervisor whose plan is in the control directory. OSError if it cannot be started."""
    lock_fd = os.open(paths.control / supervisor.LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    notify_fd, notify_end = os.pipe()
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with (paths.control / supervisor.SUPERVISOR_LOG_FILE).open("ab") as log:
            process = subprocess.Popen(
                supervisor.command(paths.control / supervisor.PLAN_FILE, lock_fd, notify_end),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                start_new_session=True,
                pass_fds=(lock_fd, notify_end),
            )
        return Supervised(paths, os.pidfd_open(process.pid), process, notify_fd)
    except OSError:
        os.close(notify_fd)
        raise
    finally:
        os.close(lock_fd)
        os.close(notify_end)


def find(paths: JobPaths) -> Supervised | None:
    """Return the supervisor that holds the lock, or None. A new supervisor may need a moment to write its id."""
    until = time.monotonic() + _SUPERVISOR_START_S
    while is_locked(paths.control / supervisor.LOCK_FILE) and time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            pidfd = os.pidfd_open(int((paths.control / supervisor.PID_FILE).read_text()))
            if is_locked(paths.control / supervisor.LOCK_FILE):  # so it was alive when its id was read
                return Supervised(paths, pidfd)
            os.close(pidfd)
        time.sleep(0.02)
    return None


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
