"""`hypha-worker logs`: the lines of a job's bridge and executor in one, by the time at which each was written.

They are read from the files of the job, so no node needs to run. The functions block.
"""

import heapq
import io
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from hypha_contracts.node_config import NodeConfig
from hypha_contracts.text import escaped, without_hidden
from hypha_worker.errors import NodeError
from hypha_worker.runtimes.process import directories, launch, supervisor

_POLL_S: Final = 0.25
_NEWEST: Final = 10
_TIME: Final = re.compile(r"(?:time=)?(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z) ?")
_SOURCES: Final = {"bridge": supervisor.BRIDGE_LOG_FILE, "executor": supervisor.OUTPUT_FILE}
_STYLES: Final = {"bridge": "cyan", "executor": "magenta"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a log. `at` is when it was written, in seconds since the epoch."""

    at: float
    source: str
    text: str


def parse_line(source: str, raw: str, before: float) -> Line:
    """Return a line of a log. One that does not begin with its time belongs to the line `before`."""
    text = raw.rstrip("\r")
    found = _TIME.match(text)
    try:
        at = datetime.fromisoformat(found[1]).timestamp() if found else -1.0
    except ValueError:  # a job may write any digits
        at = -1.0
    return Line(at, source, text[found.end() :]) if found and at >= 0 else Line(before, source, text)


def in_order(*logs: Iterable[Line]) -> list[Line]:
    """Return the lines of several logs by time. Those of one log keep their order, whatever times they have."""
    return list(heapq.merge(*map(_never_back, logs), key=lambda line: line.at))


def _never_back(lines: Iterable[Line]) -> Iterator[Line]:
    latest = float("-inf")
    for line in lines:
        latest = max(latest, line.at)
        yield Line(latest, line.source, line.text)


class _Log:
    """The file of a log, which its writer replaces by an empty one whenever it is full."""

    def __init__(self, source: str, path: Path) -> None:
        self._source = source
        self._path = path
        self._file: io.BufferedReader | None = None
        self._rest = b""
        self._at = 0.0

    def close(self) -> None:
        if self._file:
            self._file.close()

    def read(self, *, ended: bool) -> list[Line]:
        """Return the lines that were added since the last call. Without its end, the last one waits unless `ended`."""
        data = self._rest
        if self._file is None:
            with suppress(OSError):
                data += self._path.with_name(f"{self._path.name}.1").read_bytes()
        else:
            data += self._file.read()
        if self._is_replaced():
            self.close()
            with suppress(FileNotFoundError):
                self._file = self._path.open("rb")
                data += self._file.read()
        *complete, self._rest = data.split(b"\n")
        if ended and self._rest:
            complete, self._rest = [*complete, self._rest], b""
        lines = []
        for raw in complete:
            lines.append(parse_line(self._source, raw.decode(errors="replace"), self._at))
            self._at = lines[-1].at
        return lines

    def _is_replaced(self) -> bool:
        if self._file is None:
            return True
        try:
            now, then = self._path.stat(), Path(f"/proc/self/fd/{self._file.fileno()}").stat()
        except OSError:
            return False
        return now.st_ino != then.st_ino


@dataclass(frozen=True)
class JobLogs:
    """Where a worker keeps the logs of its jobs: each in a directory named after its task."""

    live: Path
    ended: Path

    @classmethod
    def of(cls, config: NodeConfig, state_dir: Path) -> "JobLogs":
        """Return those of the worker with this configuration. NodeError if its jobs are pods."""
        if config.kubernetes is not None:
            raise NodeError("the jobs of this worker are pods. Read their logs with `kubectl logs`.")
        return cls(state_dir / launch.JOBS, config.jobs.log_dir or state_dir / launch.LOGS)

    def find(self, name: str) -> str:
        """Return the task id that begins with `name`. NodeError if there is none, or there are several."""
        tasks = {path.name: path for directory in (self.ended, self.live) for path in _of_jobs(directory)}
        found = [task for task in tasks if task.startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        newest = sorted(found or tasks, key=lambda task: _modified(tasks[task]), reverse=True)[:_NEWEST]
        listed = ", ".join(newest)
        if found:
            raise NodeError(f"{escaped(name)} may mean {len(found)} jobs: {listed}. Write more of the task id.")
        there = f"There are {listed}" if listed else "There are none: logs of ended jobs are kept for jobs.keep_ended_s"
        raise NodeError(f"no job {escaped(name)} has logs in {self.live} or {self.ended}. {there}.")

    def lines(self, task_id: str, *, follow: bool) -> Iterator[list[Line]]:
        """Yield the lines of a job, and with `follow` those that come until it has ended."""
        live, ended = self.live / task_id, self.ended / task_id
        with ExitStack() as stack:
            logs = [_Log(source, (live if live.exists() else ended) / name) for source, name in _SOURCES.items()]
            for log in logs:
                stack.callback(log.close)
            while True:
                over = not follow or not live.exists()
                if lines := in_order(*(log.read(ended=over) for log in logs)):
                    yield lines
                if over:
                    return
                time.sleep(_POLL_S)


def show(config: NodeConfig, state_dir: Path, name: str, *, follow: bool) -> None:
    """Print the logs of a job by the beginning of its task id. NodeError."""
    logs = JobLogs.of(config, state_dir)
    console = Console(highlight=False, soft_wrap=True)
    for lines in logs.lines(logs.find(name), follow=follow):
        for line in lines:
            console.print(_shown(line))


def _shown(line: Line) -> Text:
    at = datetime.fromtimestamp(line.at).astimezone()
    label = f"{at:%H:%M:%S} {line.source:<8} "
    return Text.assemble((label, _STYLES[line.source]), without_hidden(line.text.expandtabs()))


def _of_jobs(directory: Path) -> list[Path]:
    try:
        return [path for path in directory.iterdir() if directories.is_of_node(path)]
    except OSError:  # there is none yet
        return []


def _modified(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
