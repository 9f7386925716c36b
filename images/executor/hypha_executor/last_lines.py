"""Keep the last lines of an executor's log for the cluster, which shows them once its pod is gone.

A cluster takes the last lines of a container that failed from its log. Of one that succeeded it takes only what the
program wrote to a file.
"""

import logging
from collections import deque
from pathlib import Path
from typing import Final

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""In a pod, the file whose text the cluster shows about the end of the container."""
_MAX_LINES: Final = 20
_MAX_BYTES: Final = 3072
"""A cluster takes 4096 bytes of a container, and 12 KiB of a pod."""


class LastLines(logging.Handler):
    """The last lines of a log. They may come from `logging` or from `add`."""

    def __init__(self, path: Path = TERMINATION_LOG) -> None:
        super().__init__()
        self._path = path
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)

    def add(self, line: str) -> None:
        """Add a line."""
        self._lines.append(line)

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line of a log record."""
        self.add(self.format(record))

    def leave(self) -> None:
        """Leave the lines for the cluster, if this is a pod and there are any."""
        if self._lines and self._path.is_file():
            self._path.write_bytes("\n".join(self._lines).encode()[-_MAX_BYTES:])
