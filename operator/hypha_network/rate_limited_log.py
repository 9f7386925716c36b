"""Rate-limited log lines about a subject, usually a peer, so that a misbehaving peer cannot fill the log."""

import logging
import time
from collections import OrderedDict

INTERVAL_S = 10.0
_MAX_SUBJECTS = 1024


class RateLimitedLogger:
    """Log at most one line per subject and interval; the next line says how many lines were suppressed."""

    def __init__(self, logger: logging.Logger, interval_s: float = INTERVAL_S) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._subjects: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Per subject, when its last line was logged and how many were suppressed since."""

    def warning(self, subject: str, message: str, *args: object) -> None:
        """Log a warning about a subject, unless a line about it was logged within the interval."""
        self._log(logging.WARNING, subject, message, args)

    def info(self, subject: str, message: str, *args: object) -> None:
        """Log information about a subject, unless a line about it was logged within the interval."""
        self._log(logging.INFO, subject, message, args)

    def _log(self, level: int, subject: str, message: str, args: tuple[object, ...]) -> None:
        now = time.monotonic()
        last_logged, suppressed = self._subjects.get(subject, (float("-inf"), 0))
        if now - last_logged < self._interval_s:
            self._subjects[subject] = last_logged, suppressed + 1
            return
        self._subjects[subject] = now, 0
        self._subjects.move_to_end(subject)
        if len(self._subjects) > _MAX_SUBJECTS:
            self._subjects.popitem(last=False)
        suffix = f" ({suppressed} similar lines were suppressed)" if suppressed else ""
        self._logger.log(level, "%s: " + message + suffix, subject, *args)
