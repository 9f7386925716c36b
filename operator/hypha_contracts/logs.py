"""The log of every process, on standard error: for people on a terminal, else as key=value, or as JSON.

Messages may quote peers, schedulers and jobs, so the formatters escape them. A record is one line. Only a traceback and
the lines that a caller passes as `extra={"lines": [...]}` get lines of their own, each marked as a part of the record.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from itertools import chain
from types import TracebackType
from typing import Final, Literal, TextIO

from hypha_contracts.text import escaped, escaped_lines

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["human", "logfmt", "json"]
LogFormatOrAuto = Literal["auto", LogFormat]

_COLOURS: Final = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}
_NOISY: Final = (
    "aiohttp", "asyncio", "httpcore", "httpx", "httpx2", "hypercorn", "kopf", "kubernetes", "libp2p", "multiaddr",
    "opentelemetry", "urllib3",
)  # fmt: skip
"""These libraries log from warnings on only. The HTTP clients log URLs, which may hold secrets."""

_TRACEBACKS: Final = logging.Formatter()


def configure(level: LogLevel, log_format: LogFormatOrAuto = "auto", stream: TextIO = sys.stderr) -> None:
    """Send every record at or above a level to the stream, and also the error that ends the process.

    `auto` is `human` on a terminal and `logfmt` elsewhere.
    """
    if log_format == "auto":
        log_format = "human" if stream.isatty() else "logfmt"
    formatters = {"human": HumanFormatter(colour=stream.isatty()), "json": JsonFormatter(), "logfmt": LogfmtFormatter()}
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatters[log_format])
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_unexpected
    if level != "debug":
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)


def _log_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log an error that nothing has caught, because its text may quote others."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger(__name__).critical("unexpected error", exc_info=(kind, error, trace))


class HumanFormatter(logging.Formatter):
    """`12:30:01 INFO message`, coloured where the stream is a terminal."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it a job's last output or a traceback."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = f"{record.levelname:<7}"
        if self._colour:
            level = f"\x1b[{_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        message = f"{time} {level} {escaped(record.getMessage())}"
        return "\n  | ".join((message, *chain.from_iterable(record_texts(record).values())))


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return json.dumps(_fields(record), ensure_ascii=False)


class LogfmtFormatter(logging.Formatter):
    """`time=... level=info logger=... msg="..."`, always one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return " ".join(f"{key}={_quote(value)}" for key, value in _fields(record).items())


def _fields(record: logging.LogRecord) -> dict[str, str]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    message = escaped(record.getMessage())
    fields = {"time": time, "level": record.levelname.lower(), "logger": record.name, "msg": message}
    return fields | {name: "\n".join(lines) for name, lines in record_texts(record).items()}


def record_texts(record: logging.LogRecord) -> dict[str, list[str]]:
    """Return the texts of a record that have several lines, by name, with each line escaped."""
    texts = {}
    if lines := getattr(record, "lines", ()):
        texts["output"] = escaped_lines("\n".join(lines))
    if record.exc_info:
        texts["exception"] = escaped_lines(_TRACEBACKS.formatException(record.exc_info))
    return texts


def _quote(value: str) -> str:
    """Quote a value that holds anything but plain characters, as JSON, so that no line break or escape gets through."""
    plain = value and all(c.isalnum() or c in "-_.:/+" for c in value)
    return value if plain else json.dumps(value, ensure_ascii=False)
