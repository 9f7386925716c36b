"""The node's log on standard error: for people on a terminal, else as key=value, or as JSON."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

Format = Literal["auto", "human", "logfmt", "json"]

_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_NOISY: Final = ("libp2p", "httpx", "httpcore", "urllib3", "hypercorn", "multiaddr", "opentelemetry")


def configure(level: str, log_format: Format, stream: TextIO = sys.stderr) -> None:
    """Send everything at or above a level (a name of `logging`) to the stream; libraries only from warnings on."""
    if log_format == "auto":
        log_format = "human" if stream.isatty() else "logfmt"
    formatters = {"human": HumanFormatter(colour=stream.isatty()), "json": JsonFormatter(), "logfmt": LogfmtFormatter()}
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatters[log_format])
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if level.upper() != "DEBUG":
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


class HumanFormatter(logging.Formatter):
    """`12:30:01 INFO message`, coloured where the stream is a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line (or lines: a job's last output, a traceback)."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = f"{record.levelname:<7}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        return "\n".join(part for part in (f"{time} {level} {record.getMessage()}", _trace(self, record)) if part)


class LogfmtFormatter(logging.Formatter):
    """`time=... level=info logger=... msg="..."`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        fields["msg"] = record.getMessage()
        if trace := _trace(self, record):
            fields["exception"] = trace
        return " ".join(f"{key}={_quote(value)}" for key, value in fields.items())


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        fields["msg"] = record.getMessage()
        if trace := _trace(self, record):
            fields["exception"] = trace
        return json.dumps(fields, ensure_ascii=False)


def _quote(value: str) -> str:
    """Quote what holds anything but plain characters; quoted text is JSON, so no line break or escape gets through."""
    plain = value and all(c.isalnum() or c in "-_.:/+" for c in value)
    return value if plain else json.dumps(value, ensure_ascii=False)
