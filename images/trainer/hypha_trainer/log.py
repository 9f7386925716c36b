"""The executor's log: lines on standard output, which the worker reads."""

import os
import sys
import time
from typing import Final

from hypha_executor.last_lines import LastLines

LAST_LINES: Final = LastLines()
"""The last lines of the log, of the first process alone."""
_START = time.monotonic()
_RANK = os.environ.get("RANK", "0")


def log(message: str) -> None:
    """Write one line without delay, with the seconds since the start."""
    rank = "" if _RANK == "0" else f" [process {_RANK}]"
    line = f"executor +{time.monotonic() - _START:.1f}s{rank} {message}"
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    if not rank:
        LAST_LINES.add(line)
