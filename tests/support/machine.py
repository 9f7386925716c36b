"""How fast this machine is at the moment, so that budgets of CPU time also hold on a busy or a slower one."""

import time
from statistics import median
from typing import Final

_IDLE_S: Final = 0.0009
"""What the work below takes on an idle core of the machine on which the budgets were set."""
_MORE: Final = 2.0
"""Decoders suffer more than this work from smaller caches, or from a neighbour that uses the same ones."""


def slowdown() -> float:
    """Return how many times slower than on that idle core a decoder may run now."""
    return max(1.0, median(_work_s() for _ in range(5)) / _IDLE_S) * _MORE


def _work_s() -> float:
    started, kept = time.thread_time(), {}
    for number in range(5000):
        kept[number % 97] = number, str(number)
    return time.thread_time() - started
