"""Rate-limited log lines about a subject, usually a peer, so that misbehaving peers cannot fill the log."""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence

INTERVAL_S = 10.0
MAX_LINES = 8
"""Maximum number of lines that a logger writes about all its subjects within an interval."""
MAX_LINE_CHARS = 512
"""Longer lines are cut, because they may quote a peer."""
_MAX_SUBJECTS = 1024


class RateLimitedLogger:
    """Log at most one line per subject and interval; the next line says how many lines were suppressed.

    The lines about all subjects together are limited, too, because there may be many subjects.
    """

    def __init__(self, logger: logging.Logger, interval_s: float = INTERVAL_S) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._subjects: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Per subject, when its last line was logged and how many were suppressed since."""
        self._began = float("-inf")
        self._lines = 0
        """The number of lines since `_began`."""

    def warning(self, subject: str, message: str, *args: object) -> None:
        """Log a warning about a subject, unless a line about it was logged within the interval."""
        self._log(logging.WARNING, subject, message, args)

    def info(self, subject: str, message: str, *args: object) -> None:
        """Log information about a subject, unless a line about it was logged within the interval."""
        self._log(logging.INFO, subject, message, args)

    def error(self, subject: str, message: str, *args: object, lines: Sequence[str] = ()) -> None:
        """Log an error about a subject, with `lines` below it, unless a line was logged within the interval."""
        self._log(logging.ERROR, subject, message, args, lines)

    def _log(self, level: int, subject: str, message: str, args: tuple[object, ...], lines: Sequence[str] = ()) -> None:
        now = time.monotonic()
        last_logged, suppressed = self._subjects.get(subject, (float("-inf"), 0))
        if now - self._began >= self._interval_s:
            self._began, self._lines = now, 0
        if now - last_logged < self._interval_s or self._lines >= MAX_LINES:
            self._record(subject, last_logged, suppressed + 1)
            return
        self._lines += 1
        self._record(subject, now, 0)
        text = f"{subject}: {message % args}"
        if len(text) > MAX_LINE_CHARS:
            text = f"{text[:MAX_LINE_CHARS]}..."
        suffix = f" ({suppressed} similar lines were suppressed)" if suppressed else ""
        self._logger.log(level, "%s%s", text, suffix, extra={"lines": lines})

    def _record(self, subject: str, last_logged: float, suppressed: int) -> None:
        self._subjects[subject] = last_logged, suppressed
        self._subjects.move_to_end(subject)
        if len(self._subjects) > _MAX_SUBJECTS:
            self._subjects.popitem(last=False)
