"""The trainer's log: lines on standard output, which the worker reads."""

import os
import sys
import time

_START = time.monotonic()
_RANK = os.environ.get("RANK", "0")


def log(message: str) -> None:
    """Write one line without delay, with the seconds since the start."""
    rank = "" if _RANK == "0" else f" [process {_RANK}]"
    sys.stdout.write(f"trainer +{time.monotonic() - _START:.1f}s{rank} {message}\n")
    sys.stdout.flush()
