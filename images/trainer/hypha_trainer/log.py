"""The trainer's log: lines on standard output, where a worker reads them."""

import os
import sys
import time

_START = time.monotonic()
_RANK = os.environ.get("RANK", "0")


def log(message: str) -> None:
    """Writes one line at once, with the seconds since the start."""
    rank = "" if _RANK == "0" else f" [process {_RANK}]"
    sys.stdout.write(f"trainer +{time.monotonic() - _START:.1f}s{rank} {message}\n")
    sys.stdout.flush()
