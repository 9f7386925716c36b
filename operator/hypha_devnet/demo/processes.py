"""The demo's processes, each in a session of its own with a log file. None of them or their children outlives it."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

_STOP_S: Final = 15.0
_SWEEP_S: Final = 5.0
_LAST_LINES: Final = 15
_MAX_LINE_BYTES: Final = 1 << 20
_PR_SET_CHILD_SUBREAPER: Final = 36

Event = Mapping[str, Any]


class ProcessDiedError(Exception):
    """A process ended unexpectedly. The text names it, its status and the end of its log."""


@dataclass
class Process:
    """A process; `ending` is set once its end is expected."""

    name: str
    log: Path
    handle: trio.Process
    ending: bool = False

    def last_lines(self) -> str:
        """Return the end of its log."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])

    async def ended(self) -> int:
        """Expect and await its end; return the exit status."""
        self.ending = True
        return await self.handle.wait()

    async def send_line(self, line: str) -> None:
        """Write a line to its standard input."""
        if self.handle.stdin is None:
            raise ValueError(f"{self.name} was started without standard input")
        await self.handle.stdin.send_all(f"{line}\n".encode())


class Processes:
    """Starts processes and passes on their events; `open_processes` makes one."""

    def __init__(self, logs: Path, environment: Mapping[str, str], on_event: Callable[[str, Event], None]) -> None:
        self._logs = logs
        self._environment = environment
        self._on_event = on_event
        self._running: list[Process] = []
        self._hurry = trio.Event()
        self.nursery: trio.Nursery | None = None

    async def start(
        self,
        name: str,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        *,
        talks: bool = False,
    ) -> Process:
        """Start `python ARGUMENTS`. Its lines of JSON on standard output are events. `talks` opens standard input."""
        if self.nursery is None:
            raise RuntimeError("the processes are not open")
        log = self._logs / f"{name}.log"
        with log.open("ab") as output:
            handle = await trio.lowlevel.open_process(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # the demo handles Ctrl-C on the terminal and ends the processes in order
                env={**self._environment, **(environment or {})},
            )
        process = Process(name, log, handle)
        self._running.append(process)
        self.nursery.start_soon(self._follow, process)
        self.nursery.start_soon(self._watch, process)
        return process

    async def _follow(self, process: Process) -> None:
        buffer = b""
        assert process.handle.stdout is not None  # noqa: S101 - asked for above
        async for data in process.handle.stdout:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._take(process, line)
            if len(buffer) > _MAX_LINE_BYTES:
                buffer = b""

    def _take(self, process: Process, line: bytes) -> None:
        try:
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                self._on_event(process.name, event)
                return
        except ValueError:
            pass
        with process.log.open("ab") as log:
            log.write(line + b"\n")

    async def _watch(self, process: Process) -> None:
        status = await process.handle.wait()
        if not process.ending:
            raise ProcessDiedError(
                f"{process.name} ended with status {status}. The end of its log, {process.log}:\n{process.last_lines()}"
            )

    def hurry(self) -> None:
        """Kill the processes at once instead of letting them end in order."""
        self._hurry.set()

    async def stop(self, names: Sequence[str] | None = None) -> None:
        """End the processes of these names, or all: send SIGTERM, wait, then kill them and all their children."""
        chosen = [process for process in self._running if names is None or process.name in names]
        with trio.move_on_after(_STOP_S) as limit:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_in_a_hurry, limit)
                async with trio.open_nursery() as asked:
                    for process in chosen:
                        process.ending = True
                        if process.handle.poll() is None:
                            process.handle.terminate()
                        asked.start_soon(process.handle.wait)
                nursery.cancel_scope.cancel()
        for process in chosen:
            if process.handle.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.handle.pid, signal.SIGKILL)
                await process.handle.wait()
            self._running.remove(process)

    async def _cancel_in_a_hurry(self, scope: trio.CancelScope) -> None:
        await self._hurry.wait()
        scope.cancel()


@contextlib.asynccontextmanager
async def open_processes(
    logs: Path, environment: Mapping[str, str], on_event: Callable[[str, Event], None], workers: Sequence[str]
) -> AsyncIterator[Processes]:
    """Open processes that end with the context: the workers first, so that they can still notify the other nodes."""
    _adopt_orphans()
    processes = Processes(logs, environment, on_event)
    try:
        async with trio.open_nursery() as nursery:
            processes.nursery = nursery
            yield processes
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await processes.stop(workers)
            await processes.stop()
            await trio.to_thread.run_sync(_sweep)


def _adopt_orphans() -> None:
    """Adopt the children that a killed process leaves behind, where the kernel can do that."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _sweep() -> None:
    """Kill what the ended processes have left: by now, every child of this process."""
    deadline = time.monotonic() + _SWEEP_S
    while time.monotonic() < deadline:
        for task in Path("/proc/self/task").glob("*/children"):
            for pid in task.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
