"""Starts, finds and kills processes. Uses only the standard library, like the supervisor of a job."""

import contextlib
import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

JOB_NICENESS: Final = 5
"""With this, a busy core gives a job's process a third of the time that it gives the node."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_TAIL_BYTES: Final = 16 * 1024
_TAIL_LINES: Final = 20
_LINE_CHARS: Final = 500

_libc = ctypes.CDLL(None, use_errno=True)


class BoundedLog:
    """A log of two files with a maximum size, written in turns. The last bytes are also in memory.

    Args:
        path: the file. Its predecessor has the suffix `.1`.
        file_bytes: the maximum size of each file.
        stamps: whether each line in the files begins with the time at which it arrived.
    """

    def __init__(self, path: Path, file_bytes: int, *, stamps: bool = False) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._stamps = stamps
        self._within_line = False
        self._tail = b""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append data. A full disk loses data of the files."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self._stamps:
            data = self._stamped(data)
        data = data[-self._file_bytes :]
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size + len(data) > self._file_bytes:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                os.close(self._file)
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(self._file, data)

    def _stamped(self, data: bytes) -> bytes:
        """Return data with the time before the first byte of each line."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z ").encode()
        ends, within_line = data.endswith(b"\n"), self._within_line
        self._within_line = not ends
        text = data[:-1] if ends else data
        return (b"" if within_line else stamp) + text.replace(b"\n", b"\n" + stamp) + (b"\n" if ends else b"")

    def last_lines(self) -> list[str]:
        """Return the last lines, shortened."""
        lines = self._tail.decode(errors="replace").splitlines()
        return [line[:_LINE_CHARS] for line in lines if line.strip()][-_TAIL_LINES:]


class Child:
    """A program whose output goes to a bounded log. OSError if it cannot be started. The caller reaps it."""

    def __init__(
        self, args: list[str], env: dict[str, str], cwd: str, log: BoundedLog, prepare: Callable[[], None]
    ) -> None:
        self.log = log
        self.status: int | None = None
        self.output: int | None
        self.output, output_end = os.pipe()
        os.set_blocking(self.output, False)
        try:
            process = subprocess.Popen(
                args,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                process_group=0,
                preexec_fn=prepare,  # noqa: PLW1509 - this process has one thread
            )
        except subprocess.SubprocessError as error:
            self.read_output()
            raise OSError(str(error)) from error
        finally:
            os.close(output_end)
        self.pid = process.pid
        process.returncode = 0  # keeps subprocess from reaping it

    @property
    def ended(self) -> bool:
        """Whether the program has been reaped."""
        return self.status is not None

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the program's process group. A missing group is ignored."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def read_output(self) -> None:
        """Move the pending output of the program to its log."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(64):  # bounded, because a program may never stop writing
                if self.output is None:
                    return
                data = os.read(self.output, 64 * 1024)
                if data:
                    self.log.write(data)
                else:
                    os.close(self.output)
                    self.output = None


def become_subreaper() -> None:
    """Adopt orphaned descendants from now on."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies. Called between fork and exec."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def yield_to_the_node() -> None:
    """Lower the priority of this process and of those that it starts, so that the node's answers come first.

    A kernel that groups processes by session compares only the groups, so this lowers the group of the session, too.
    """
    os.nice(JOB_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(JOB_NICENESS))


def descendants(root: int, without: int | None = None) -> set[int]:
    """Return the descendants of a process without zombies, `without` and its descendants."""
    children: dict[int, list[int]] = {}
    for pid in _processes():
        with contextlib.suppress(OSError, ValueError):
            # The name, in parentheses, may contain anything, so the fields are counted from the last parenthesis.
            stat_text = Path("/proc", str(pid), "stat").read_text(errors="replace")
            state, parent = stat_text.rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(pid)
    found: set[int] = set()
    ahead = [root]
    while ahead:
        below = [pid for pid in children.get(ahead.pop(), ()) if pid != without]
        found.update(below)
        ahead.extend(below)
    return found


def strays(work_dir: str) -> set[int]:
    """Return the processes that were started with `WORK_DIR` naming this directory, or that are in it."""
    marker = b"\0WORK_DIR=" + os.fsencode(work_dir) + b"\0"
    found = set()
    for pid in _processes():
        with contextlib.suppress(OSError):
            process = Path("/proc", str(pid))
            environment = b"\0" + (process / "environ").read_bytes()
            if marker in environment or (process / "cwd").readlink().is_relative_to(work_dir):
                found.add(pid)
    return found


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 - only names are wanted


def members(groups: Iterable[str]) -> set[int]:
    """Return the processes in control groups. A missing group has none."""
    found: set[int] = set()
    for group in groups:
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in Path(group, "cgroup.procs").read_text().split())
    return found


def kill(pids: Iterable[int]) -> None:
    """Send SIGKILL. Missing processes are ignored."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def oom_kills(counter: str | None) -> int:
    """Return how many processes of a control group the kernel killed for memory, from `Limits.oom_counter`."""
    if counter is None:
        return 0
    with contextlib.suppress(OSError):
        for line in Path(counter).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def describe(status: int | None) -> str:
    """Describe how a process ended, by its exit code or, if that is negative, by the signal's name."""
    if status is None:
        return "never started"
    if status >= 0:
        return f"exit code {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def directory_bytes(path: str) -> int:
    """Return the disk space of a directory's files. Files that vanish meanwhile do not count.

    A tree too deep for a path counts as infinitely large, so that a job cannot hide files there.
    """
    total = 0
    ahead = [path]
    while ahead:
        try:
            with os.scandir(ahead.pop()) as entries:
                for entry in entries:
                    status = entry.stat(follow_symlinks=False)
                    total += status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        ahead.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return sys.maxsize
    return total
