"""The events of a node, one line of JSON each: `{"event": name, "time": seconds since the epoch, ...}`."""

import json
import logging
import sys
import time
from typing import Any, Final, TextIO

logger = logging.getLogger(__name__)

_FREQUENT: Final = frozenset({"batch", "metrics", "slice", "update_scheduled"})
"""Events that a job causes several times a second. The log shows them at level debug."""


class Events:
    """Writes every event to the log, and to a stream if there is one."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    @classmethod
    def to_stdout(cls, enabled: bool) -> "Events":
        """Return events that also go to standard output if that is enabled."""
        return cls(sys.stdout if enabled else None)

    def emit(self, event: str, **values: Any) -> None:
        """Write one event."""
        level = logging.DEBUG if event in _FREQUENT else logging.INFO
        logger.log(level, "%s %s", event, " ".join(f"{key}={value}" for key, value in values.items()))
        if self._stream is not None:
            line = json.dumps({"event": event, "time": round(time.time(), 3), **values})
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except BrokenPipeError:  # the reader is gone, but the node continues
                self._stream = None
