"""The operator's log on standard error: for people, as key=value, or as JSON."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

Format = Literal["human", "logfmt", "json"]

_NOISY: Final = ("kopf", "aiohttp", "asyncio", "kubernetes")


def configure(level: str, log_format: Format) -> None:
    """Send everything at or above a level to standard error; libraries only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "human":
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    else:
        handler.setFormatter(_Fields(as_json=log_format == "json"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if level.upper() != "DEBUG":
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)


class _Fields(logging.Formatter):
    """One line a record, whatever is in it."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"time": time, "level": record.levelname.lower(), "logger": record.name, "msg": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps(fields, ensure_ascii=False)
        return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())
