"""The parent of one job's processes. It starts and watches the bridge and the executor and records how they ended.

It runs as a process of its own (see `command`) with only the standard library, in its own session, so that it outlives
a killed node. It holds the lock it was started with as long as it lives. While it runs it reads two files of the
control directory: `deadline` is when the job must end, and `stop` is the reason to end it now.
"""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from hypha_worker.files import replace_file
from hypha_worker.runtimes.process import processes

PLAN_FILE: Final = "plan.json"
LOCK_FILE: Final = "lock"
PID_FILE: Final = "supervisor.pid"
DEADLINE_FILE: Final = "deadline"
STOP_FILE: Final = "stop"
EXIT_FILE: Final = "exit.json"
OUTPUT_FILE: Final = "output.log"
BRIDGE_LOG_FILE: Final = "bridge.log"
SUPERVISOR_LOG_FILE: Final = "supervisor.log"
STARTED: Final = b"started"
"""Written to the notification pipe once the executor runs."""

_EXECUTOR_OOM_SCORE: Final = 500
_STORAGE_SCAN_EVERY_S: Final = 5.0
_KILL_FOR_S: Final = 10.0
_SOURCE_ROOT: Final = str(Path(__file__).parents[3])


def command(plan_file: Path, lock_fd: int, notify_fd: int) -> list[str]:
    """Return the command that starts a supervisor: isolated, without site packages, small and quick to start."""
    start = f"import sys; sys.path.append({_SOURCE_ROOT!r}); from {__name__} import main; main(sys.argv[1:])"
    return [sys.executable, "-I", "-S", "-c", start, str(plan_file), str(lock_fd), str(notify_fd)]


@dataclass(frozen=True)
class Command:
    """A program to run."""

    args: list[str]
    env: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """The input of a supervisor."""

    work_dir: str
    socket: str
    bridge_state: str
    bridge: Command
    executor: Command
    rlimits: dict[str, int] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    oom_counter: str | None = None
    storage_bytes: int | None = None
    start_s: float = 60.0
    grace_s: float = 5.0
    kill_after_s: float = 5.0
    drain_s: float = 120.0
    log_bytes: int = 4 * 1024 * 1024

    def to_json(self) -> str:
        """Return the plan for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from `to_json`."""
        values = json.loads(text)
        return cls(**values | {"bridge": Command(**values["bridge"]), "executor": Command(**values["executor"])})


@dataclass(frozen=True)
class Exit:
    """How a job ended. `exit.json` holds it."""

    finished: bool
    reason: str
    last_lines: list[str]
    exit_code: int | None
    out_of_memory: bool
    undelivered: bool
    started_at: float
    ended_at: float


class Stopped(Exception):  # noqa: N818 - not an error
    """The job must end now. The message says why, and the log holds the last output."""

    def __init__(self, reason: str, log: processes.BoundedLog | None = None) -> None:
        super().__init__(reason)
        self.log = log


class Deadline:
    """The lease's deadline. It is kept on the monotonic clock, so that a step of the wall clock ends no job."""

    def __init__(self, path: Path, grace_s: float) -> None:
        self._path = path
        self._grace_s = grace_s
        self._observed: tuple[int, int] | None = None
        self._until = time.monotonic() + grace_s

    def passed(self) -> bool:
        """Whether the grace period after the deadline is over."""
        with contextlib.suppress(OSError, ValueError):
            status = self._path.stat()
            observed = (status.st_ino, status.st_mtime_ns)
            if observed != self._observed:
                self._until = time.monotonic() + float(self._path.read_text()) - time.time() + self._grace_s
                self._observed = observed
        return time.monotonic() > self._until


class StorageLimit:
    """The limit on the total size of a job's directories, which are scanned periodically."""

    def __init__(self, paths: list[str], limit_bytes: int | None) -> None:
        self._paths = paths
        self._limit_bytes = limit_bytes
        self._next_scan = time.monotonic() + _STORAGE_SCAN_EVERY_S

    def exceeded(self) -> bool:
        """Scan if a scan is due, and return whether it found too much."""
        start = time.monotonic()
        if self._limit_bytes is None or start < self._next_scan:
            return False
        size_bytes = sum(map(processes.directory_bytes, self._paths))
        now = time.monotonic()
        self._next_scan = now + max(_STORAGE_SCAN_EVERY_S, 20 * (now - start))
        return size_bytes > self._limit_bytes


class Supervisor:
    """Runs one job from its plan to its end."""

    def __init__(self, plan: Plan, control_dir: Path) -> None:
        self._plan = plan
        self._control_dir = control_dir
        self._children: list[processes.Child] = []
        self._terminated = False
        self._wakeup, wakeup_end = os.pipe()
        for end in (self._wakeup, wakeup_end):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_terminate)
        self._deadline = Deadline(control_dir / DEADLINE_FILE, plan.grace_s)
        self._storage = StorageLimit([plan.work_dir, plan.bridge_state], plan.storage_bytes)

    def run(self, notify_fd: int) -> Exit:
        """Run the job to its end. In any case, nothing of it is left running."""
        started_at = time.time()
        executor: processes.Child | None = None
        undelivered = False
        try:
            bridge = self._start("bridge", self._plan.bridge, BRIDGE_LOG_FILE, processes.die_with_parent)
            self._await_socket(bridge)
            executor = self._start("executor", self._plan.executor, OUTPUT_FILE, self._enter_limits)
            with contextlib.suppress(OSError):  # the node may be gone
                os.write(notify_fd, STARTED)
            os.close(notify_fd)
            self._await_executor(executor, bridge)
            reason = f"the executor ended: {processes.describe(executor.status)}"
            finished = executor.status == 0
            log: processes.BoundedLog | None = executor.log
            undelivered = not self._drain(executor, bridge)
        except Stopped as stopped:
            finished, reason = False, str(stopped)
            log = stopped.log or (executor.log if executor else None)
            self._end_children()
        finally:
            self._kill_all(spare=None)
        kills = 0 if finished else processes.oom_kills(self._plan.oom_counter)
        if kills:
            reason += f" (the kernel killed {kills} of its processes for using more memory than the job was given)"
        return Exit(
            finished=finished,
            reason=reason,
            last_lines=log.last_lines() if log else [],
            exit_code=executor.status if executor else None,
            out_of_memory=kills > 0,
            undelivered=undelivered,
            started_at=started_at,
            ended_at=time.time(),
        )

    def _start(self, name: str, program: Command, log_file: str, prepare: Callable[[], None]) -> processes.Child:
        stamps = log_file == OUTPUT_FILE  # the bridge writes the times itself
        log = processes.BoundedLog(self._control_dir / log_file, self._plan.log_bytes, stamps=stamps)
        try:
            child = processes.Child(program.args, program.env, self._plan.work_dir, log, prepare)
        except (OSError, ValueError) as error:
            raise Stopped(f"the {name} {program.args[0]!r} could not be started: {error}", log) from error
        self._children.append(child)
        return child

    def _await_socket(self, bridge: processes.Child) -> None:
        ready = self._wait(lambda: bridge.ended or _accepts(self._plan.socket), self._plan.start_s, poll_s=0.02)
        if bridge.ended:
            raise Stopped(f"the bridge ended before it was ready: {processes.describe(bridge.status)}", bridge.log)
        if not ready:
            raise Stopped(f"the bridge did not open its socket within {self._plan.start_s:g} s", bridge.log)

    def _await_executor(self, executor: processes.Child, bridge: processes.Child) -> None:
        self._wait(lambda: executor.ended or bridge.ended, None)
        if not executor.ended:
            raise Stopped(
                f"the bridge ended while the executor was running: {processes.describe(bridge.status)}", bridge.log
            )

    def _drain(self, executor: processes.Child, bridge: processes.Child) -> bool:
        """Let the bridge send the remaining files. False if it failed or was too slow. A stop ends the wait."""
        self._kill_all(spare=bridge)
        bridge.signal_group(signal.SIGTERM)
        timeout_s = self._plan.drain_s if executor.status == 0 else self._plan.kill_after_s
        with contextlib.suppress(Stopped):
            self._wait(lambda: bridge.ended, timeout_s)
        return bridge.status == 0

    def _end_children(self) -> None:
        for child in self._children:
            child.signal_group(signal.SIGTERM)
        self._wait(lambda: all(child.ended for child in self._children), self._plan.kill_after_s, stoppable=False)

    def _wait(
        self, done: Callable[[], bool], timeout_s: float | None, *, poll_s: float = 1.0, stoppable: bool = True
    ) -> bool:
        """Serve the children until `done`. False after the timeout, Stopped if the job must end."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not done():
            if stoppable:
                self._check_stop()
            left = poll_s if until is None else min(poll_s, until - time.monotonic())
            if left <= 0:
                return False
            self._serve(left)
        return True

    def _check_stop(self) -> None:
        terminated = self._terminated  # read before the file, because the node writes the file and then signals
        with contextlib.suppress(FileNotFoundError):
            raise Stopped((self._control_dir / STOP_FILE).read_text(errors="replace"))
        if terminated:
            raise Stopped("the supervisor received a signal to end that its node did not send")
        if self._deadline.passed():
            raise Stopped("the lease expired while the node was gone")
        if self._storage.exceeded():
            raise Stopped(f"the job stored more than the {self._plan.storage_bytes} bytes it was given")

    def _serve(self, timeout_s: float) -> None:
        """Wait for signals and output, log the output and reap ended processes."""
        sources = {child.output: child for child in self._children if child.output is not None and not child.ended}
        ready, _, _ = select.select([self._wakeup, *sources], [], [], timeout_s)
        for source in ready:
            if source in sources:
                sources[source].read_output()
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wakeup, 4096)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                for child in self._children:
                    if child.pid == pid and not child.ended:
                        child.read_output()
                        child.status = os.waitstatus_to_exitcode(status)

    def _kill_all(self, spare: processes.Child | None) -> None:
        """Kill every descendant and every member of the job's groups, except the spared child and its descendants."""
        until = time.monotonic() + _KILL_FOR_S
        pause_s = 0.002
        while time.monotonic() < until:
            victims = processes.descendants(os.getpid(), without=spare.pid if spare else None) | processes.members(
                self._plan.groups
            )
            processes.kill(victims)
            self._reap()
            if not victims:
                return
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.1)

    def _on_terminate(self, *_: object) -> None:
        self._terminated = True

    def _enter_limits(self) -> None:
        """Apply limits between fork and exec of the executor, so that it cannot remove them."""
        processes.die_with_parent()
        Path("/proc/self/oom_score_adj").write_text(str(_EXECUTOR_OOM_SCORE))
        for group in self._plan.groups:
            try:
                Path(group, "cgroup.procs").write_text("0")
            except OSError as error:
                os.write(2, f"cannot enter the control group {group}: {error}\n".encode())
                raise
        for name, limit in self._plan.rlimits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def main(arguments: list[str]) -> None:
    """Supervise the job whose plan is the first argument. Its directory is the control directory."""
    plan_file, lock_fd, notify_fd = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    for inherited in (lock_fd, notify_fd):
        os.set_inheritable(inherited, False)
    control_dir = plan_file.parent
    processes.yield_to_the_node()
    supervisor = Supervisor(Plan.from_json(plan_file.read_text()), control_dir)
    replace_file(control_dir / PID_FILE, str(os.getpid()))
    processes.become_subreaper()
    ended = supervisor.run(notify_fd)
    replace_file(control_dir / EXIT_FILE, json.dumps(asdict(ended)))
