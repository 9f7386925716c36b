"""Start an executor again after a crash: `python -m hypha_executor.restart COMMAND...`.

A command that begins with an option, such as `-m hypha_trainer`, is one of the same Python interpreter.

The executor must go on from files in its work directory, as Hypha's trainer does. The standard library is enough here,
so that the process stays small: it lives as long as the job, beside the executor.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hypha_executor.telemetry import Telemetry

MAX_RESTARTS: Final = 2
"""How often a job's executor is started again."""

_VARIABLE: Final = "HYPHA_RESTART"
"""Of a restarted executor: the number of this restart from 1, and when the crash was (nanoseconds since the epoch)."""
_FINAL: Final = frozenset((0, 2, 3, 128 + signal.SIGTERM, 128 + signal.SIGINT))
"""The exit codes after which another start would change nothing: done, unusable job, lost bridge, and terminated."""
_PAUSE_S: Final = 1.0
_PR_SET_CHILD_SUBREAPER: Final = 36


class Restarting:
    """Runs a command to its end, and again after each crash."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._terminated = threading.Event()

    def run(self) -> int:
        """Return the exit code of the last run; 128 and the number of the signal that killed it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # to find what a killed launcher leaves behind
        variables: dict[str, str] = {}
        for restarts in range(1, MAX_RESTARTS + 2):
            status = self._run_once(variables)
            code = status if status >= 0 else 128 - status
            if code in _FINAL or restarts > MAX_RESTARTS or self._terminated.is_set():
                break
            print(f"executor: {_describe(code)}; restart {restarts} of {MAX_RESTARTS}", flush=True)
            variables = {_VARIABLE: f"{restarts} {time.time_ns()}"}
            if self._terminated.wait(_PAUSE_S):
                break
        return code

    def _run_once(self, variables: Mapping[str, str]) -> int:
        # In a group of its own, because whoever signals this process's group must not reach the executor twice.
        self._child = subprocess.Popen(self._command, env={**os.environ, **variables}, process_group=0)
        if self._terminated.is_set():  # while it was started
            self._child.send_signal(signal.SIGTERM)
        status = self._child.wait()
        _end_descendants()
        return status

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._terminated.set()
        if self._child is not None:
            self._child.send_signal(number)


def record(telemetry: "Telemetry", environ: Mapping[str, str] = os.environ) -> int:
    """Return how often this executor was restarted. Record the last restart in its telemetry."""
    number, _, crashed_ns = environ.get(_VARIABLE, "").partition(" ")
    if not (number.isdecimal() and crashed_ns.isdecimal()):
        return 0
    telemetry.record("restart", int(crashed_ns), {"number": int(number)})
    telemetry.add("hypha.job.restarts", 1)
    return int(number)


def _describe(code: int) -> str:
    with contextlib.suppress(ValueError):
        return f"it was ended by {signal.Signals(code - 128).name}"
    return f"it failed with exit code {code}"


def _end_descendants() -> None:
    """Kill and reap every process that is left. Orphans become children of this process."""
    while children := _children():
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may contain anything, so the fields are counted from the last parenthesis.
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def main() -> None:
    """Run the command of the arguments."""
    command = sys.argv[1:]
    if command in ([], ["-h"], ["--help"]):
        print(f"Usage: python -m hypha_executor.restart COMMAND [ARGUMENT...]\n\n{__doc__}")
        sys.exit(0 if command else 2)
    if command[0].startswith("-"):
        command.insert(0, sys.executable)
    try:
        sys.exit(Restarting(command).run())
    except OSError as error:
        print(f"error: {command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
