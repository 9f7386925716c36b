"""Keeps the logs of ended jobs for a time and up to a total size. The functions block."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.runtimes.process import directories, processes, supervisor

_log = RateLimitedLogger(logging.getLogger(__name__))

MAX_JOBS: Final = 512
"""Maximum number of ended jobs whose logs are kept, however small they are."""
_KEPT: Final = (
    *(supervisor.OUTPUT_FILE, f"{supervisor.OUTPUT_FILE}.1"),
    *(supervisor.BRIDGE_LOG_FILE, f"{supervisor.BRIDGE_LOG_FILE}.1"),
    *(supervisor.SUPERVISOR_LOG_FILE, supervisor.EXIT_FILE),
)


@dataclass(frozen=True)
class EndedLogs:
    """The logs of ended jobs: one private directory per job, named after its task.

    Attributes:
        directory: contains the directories. It may hold other files, which the node leaves alone.
        keep_s: how long they are kept; 0 keeps none.
        max_bytes: the size of all of them together. Beyond it, the oldest are removed.
    """

    directory: Path
    keep_s: float
    max_bytes: int

    def keep(self, control: Path) -> None:
        """Move the logs of an ended job out of its control directory. Logs a failure."""
        found = [control / name for name in _KEPT if (control / name).exists()]
        if not found or not self.keep_s:
            return
        kept = self.directory / control.name
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not kept.exists():
                directories.make_marked(kept)
            for path in found:
                shutil.move(path, kept / path.name)
        except OSError as error:
            _log.warning(f"job {control.name}", "its logs cannot be kept in %s: %s", kept, error)
        else:
            _log.info(f"job {control.name}", "its logs are kept in %s", kept)
        self.prune()

    def prune(self) -> None:
        """Remove the logs that are too old, and the oldest while there are too many or all together are too large."""
        total = 0
        for number, (ended_at, path) in enumerate(self.newest_first(), 1):
            total += processes.directory_bytes(str(path))
            if number > MAX_JOBS or total > self.max_bytes or ended_at + self.keep_s < time.time():
                directories.remove_tree(path)

    def newest_first(self) -> list[tuple[float, Path]]:
        """Return the directory of each job, and when it was written, in seconds since the epoch."""
        try:
            found = [path for path in self.directory.iterdir() if directories.is_of_node(path)]
            return sorted(((path.stat().st_mtime, path) for path in found), reverse=True)
        except OSError:  # there is none yet
            return []
