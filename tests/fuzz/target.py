"""What a fuzz target is, and the budgets that every decoder keeps."""

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from support.machine import slowdown

BASE_S: Final = 0.001
S_PER_KIB: Final = 0.000_05
MAX_S: Final = 0.02
"""Maximum CPU time of one call, because the event loop stands still meanwhile."""
BASE_BYTES: Final = 64 * 1024
BYTES_PER_BYTE: Final = 100

_ATTEMPTS: Final = 7
_HOPELESS: Final = 100.0
"""A run that takes this many times its budget is no disturbance."""


@dataclass(frozen=True)
class Target:
    """A decoder under test.

    Attributes:
        decode: decodes bytes that somebody else chose.
        errors: the errors by which it refuses them. Every other exception is a finding.
        seeds: valid inputs, which the fuzzer mutates.
        bombs: inputs that are too large to mutate. They are only measured.
        encode: the inverse of `decode`, if it has one.
        max_bytes: the size up to which the fuzzer lets inputs grow.
        base_s: the CPU time that it may take for any input. The table gives the reason for more than `BASE_S`.
        bytes_per_byte: the memory that it may take for each byte. The table gives the reason for more.
    """

    decode: Callable[[bytes], Any]
    errors: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    bombs: Mapping[str, bytes] = field(default_factory=dict)
    encode: Callable[[Any], bytes] | None = None
    max_bytes: int = 2048
    base_s: float = BASE_S
    bytes_per_byte: int = BYTES_PER_BYTE

    def run(self, data: bytes) -> float:
        """Decode once and check the round trip; return the decoder's CPU time in seconds."""
        started = time.thread_time()
        try:
            value = self.decode(data)
        except self.errors:
            return time.thread_time() - started
        elapsed_s = time.thread_time() - started
        if self.encode is not None:
            wire = self.encode(value)
            again = self.encode(self.decode(wire))
            assert again == wire, f"{value!r} is encoded as {wire!r}, then as {again!r}"
        return elapsed_s

    def slowness(self, data: bytes) -> float:
        """Decode several times, up to the budget of time. Return the part of it that the fastest run has taken.

        Other work on this machine disturbs single runs, and slows down all of them.
        """
        slowness = min(self.run(data), self.run(data)) / self.budget_s(data)  # the first one may import something
        for _ in range(_ATTEMPTS):
            if 1 < slowness < _HOPELESS:
                slowness = min(slowness, self.run(data) / self.budget_s(data) / slowdown())
        return slowness

    def budget_s(self, data: bytes) -> float:
        """Return the CPU time that decoding may take."""
        return min(self.base_s + S_PER_KIB * len(data) / 1024, MAX_S)

    def problems(self, data: bytes) -> list[str]:
        """Return how the decoder exceeds its budgets on this input."""
        found = []
        if (slowness := self.slowness(data)) > 1:
            budget_ms = self.budget_s(data) * 1e3
            found.append(f"{len(data)} bytes take {slowness * budget_ms:.2f} ms, of {budget_ms:.2f} ms allowed")
        budget_bytes = BASE_BYTES + self.bytes_per_byte * len(data)
        if slowness < _HOPELESS and (peak_bytes := self._peak_bytes(data)) > budget_bytes:
            found.append(f"{len(data)} bytes take {peak_bytes} bytes of memory, of {budget_bytes} allowed")
        return found

    def _peak_bytes(self, data: bytes) -> int:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(*self.errors):
                value = self.decode(data)  # noqa: F841 - the value counts too
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that reads from memory, so that it never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise AssertionError("the decoder waits although all of its input is there")
