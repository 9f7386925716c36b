"""Waiting for other processes."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    """Poll until a condition holds; fail after the timeout."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.05)
