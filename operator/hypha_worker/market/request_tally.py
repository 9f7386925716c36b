"""What was said to the requests that came last. Pure."""

from collections import deque
from typing import Final

from hypha_worker.market.evaluator import Refusal

_LAST: Final = 100
_LONGEST_MESSAGE: Final = 256


class RequestTally:
    """Counts the last hundred requests, so that old ones do not hide that everything is refused now."""

    def __init__(self) -> None:
        self._considered: deque[bool] = deque(maxlen=_LAST)
        self.last_refusal: Refusal | None = None

    @property
    def considered(self) -> int:
        """How many of them an offer could be made for, once there is room."""
        return sum(self._considered)

    @property
    def refused(self) -> int:
        """How many of them are never answered."""
        return len(self._considered) - self.considered

    def record(self, refusal: Refusal | None) -> None:
        """A request was refused, or (None) is considered; what strangers wrote in it is shown to people."""
        self._considered.append(refusal is None)
        if refusal is not None:
            text = "".join(letter if letter.isprintable() else "?" for letter in refusal.message[:_LONGEST_MESSAGE])
            self.last_refusal = refusal._replace(message=text)
