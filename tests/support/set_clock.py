"""A clock that stands still until a test sets it."""

from dataclasses import dataclass


@dataclass
class SetClock:
    """Returns `now`, in seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now
