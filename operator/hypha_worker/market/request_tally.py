"""The decisions on the latest requests. Pure."""

from collections import deque
from typing import Final

from hypha_contracts.text import escaped
from hypha_worker.market.evaluator import Refusal

_LAST: Final = 100
_MAX_MESSAGE_CHARS: Final = 256


class RequestTally:
    """Counts the last hundred requests, so that older ones do not hide that the worker now refuses everything."""

    def __init__(self) -> None:
        self._considered: deque[bool] = deque(maxlen=_LAST)
        self.last_refusal: Refusal | None = None

    @property
    def considered(self) -> int:
        """How many of them may get an offer once they fit into the free capacity."""
        return sum(self._considered)

    @property
    def refused(self) -> int:
        """How many of them never get an offer."""
        return len(self._considered) - self.considered

    def record(self, refusal: Refusal | None) -> None:
        """Record that a request was refused, or (None) is considered.

        The message may quote any peer, so it is escaped and cut.
        """
        self._considered.append(refusal is None)
        if refusal is not None:
            self.record_excluded(refusal)

    def record_excluded(self, refusal: Refusal) -> None:
        """Record why a request was refused without counting it, because nobody verified whose it is."""
        self.last_refusal = refusal._replace(message=escaped(refusal.message, _MAX_MESSAGE_CHARS))
