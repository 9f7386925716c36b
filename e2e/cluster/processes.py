"""Programs that run in the background, each with a name, a pid file and a log."""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None)


class StartError(Exception):
    """A program did not start; the message holds the last lines of its log."""


@dataclass(frozen=True)
class Program:
    """A program to run.

    Attributes:
        name: Its name among the programs of one directory.
        command: The program and its arguments.
        healthy: Returns whether it is ready for use.
    """

    name: str
    command: tuple[str, ...]
    healthy: Callable[[], bool]


class Processes:
    """Programs as background processes, with their pid files and logs in one directory.

    Args:
        directory: Holds `NAME.pid` and `NAME.log`.
        programs: The programs, each after those that it needs.
        die_with_parent: Whether the kernel kills them when the thread that started them ends.
    """

    def __init__(self, directory: Path, programs: list[Program], *, die_with_parent: bool) -> None:
        self.directory = directory
        self.programs = {program.name: program for program in programs}
        self._die_with_parent = die_with_parent
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def up(self) -> None:
        """Start the programs that do not run, in order.

        Raises:
            StartError: If a program does not start.
        """
        for name in self.programs:
            self.start(name)

    def down(self) -> None:
        """End the programs that run, in reverse order."""
        for name in reversed(self.programs):
            self.stop(name)

    def log(self, name: str) -> Path:
        """Return the file of a program's output."""
        return self.directory / f"{name}.log"

    def pid(self, name: str) -> int | None:
        """Return the process that runs under a name, or None. It never returns a process that reuses the pid."""
        if child := self._children.get(name):
            child.poll()
        try:
            pid, started = (self.directory / f"{name}.pid").read_text().split()
        except FileNotFoundError:
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def start(self, name: str, *, timeout_s: float = 60) -> None:
        """Start a program unless it runs, and wait until it is healthy.

        Raises:
            StartError: If it ends, or is not healthy in time.
        """
        if not self.pid(name):
            self._spawn(name)
        deadline = time.monotonic() + timeout_s
        while not self.programs[name].healthy():
            if not self.pid(name):
                raise StartError(f"{name} ended; {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise StartError(f"{name} is not healthy after {timeout_s:g} s; {self._last_words(name)}")
            time.sleep(0.05)

    def stop(self, name: str, *, grace_s: float = 10) -> None:
        """End a program: SIGTERM, and SIGKILL after a grace period. Do nothing if it does not run."""
        if pid := self.pid(name):
            with contextlib.suppress(ProcessLookupError):
                _end(pid, grace_s)
        self.pid(name)
        (self.directory / f"{name}.pid").unlink(missing_ok=True)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a program SIGKILL, SIGSTOP or SIGCONT to simulate a fault. After SIGKILL, return once it has ended."""
        if pid := self.pid(name):
            os.kill(pid, number)
            while number == signal.SIGKILL and self.pid(name) == pid:
                time.sleep(0.01)  # the kernel frees its memory first

    def _spawn(self, name: str) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            child = subprocess.Popen(
                self.programs[name].command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent if self._die_with_parent else None,  # noqa: PLW1509 (one prctl)
            )
        self._children[name] = child
        temporary = self.directory / f".{name}.pid"
        temporary.write_text(f"{child.pid} {_start_time(child.pid)}")
        temporary.rename(self.directory / f"{name}.pid")

    def _last_words(self, name: str) -> str:
        lines = self.log(name).read_text(errors="replace").splitlines()[-8:]
        return "\n  ".join([f"the end of {self.log(name)}:", *lines])


def _end(pid: int, grace_s: float) -> None:
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], grace_s)[0]:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], grace_s)
    finally:
        os.close(process)


def _start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, or None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if state in "ZX" else fields[18]


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
