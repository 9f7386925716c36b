"""Pauses between attempts: each is longer than the one before, up to a limit, and varies at random."""

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Pauses in seconds. The caller sleeps, so that threads, trio and asyncio can all use them.

    Attributes:
        first_s: The first pause.
        max_s: The longest pause.
        factor: How much longer each pause is than the one before.
        jitter: The part of a pause by which it may be shorter at random, so that nodes do not try in step.
    """

    first_s: float
    max_s: float
    factor: float = 2.0
    jitter: float = 0.2

    def pauses(self, deadline_s: float = math.inf) -> Iterator[float]:
        """Yield the pauses after one failure, two, ...; ends before a pause that would outlast the deadline.

        The deadline runs from the first failure.
        """
        started, longest_s = time.monotonic(), self.first_s
        while time.monotonic() - started + longest_s < deadline_s:
            yield longest_s * random.uniform(1 - self.jitter, 1)  # noqa: S311 - not for secrets
            longest_s = min(self.max_s, longest_s * self.factor)
