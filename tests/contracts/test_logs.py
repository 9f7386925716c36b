import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts import logs
from hypha_contracts.logs import HumanFormatter, JsonFormatter, LogfmtFormatter


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Leave the process's logging as it was."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level
    logging.captureWarnings(False)


def record(message: str, *args: object, level: int = logging.INFO, exc: bool = False) -> logging.LogRecord:
    return logging.LogRecord("hypha.x", level, __file__, 1, message, args, sys.exc_info() if exc else None)


def test_people_get_time_level_and_message() -> None:
    line = HumanFormatter(colour=False).format(record("offered %s", "a lease"))
    assert line.endswith("INFO    offered a lease")
    assert "\x1b" not in line


def test_colour_marks_the_level_only() -> None:
    line = HumanFormatter(colour=True).format(record("bad", level=logging.ERROR))
    assert "\x1b[31mERROR  \x1b[0m bad" in line


@given(st.text())
def test_whatever_a_peer_says_stays_in_its_line(text: str) -> None:
    line = LogfmtFormatter().format(record("said %s", text))
    assert len(line.splitlines()) == 1 or not any(c in line for c in "\n\r\x1b")
    assert json.loads(JsonFormatter().format(record("said %s", text)))["msg"] == f"said {text}"


def test_an_exception_comes_with_its_traceback() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        failed = record("oh", level=logging.ERROR, exc=True)
    assert "ValueError: broken" in HumanFormatter(colour=False).format(failed)
    assert "ValueError: broken" in json.loads(JsonFormatter().format(failed))["exception"]
    assert "\n" not in LogfmtFormatter().format(failed)


def test_where_there_is_no_terminal_the_log_is_key_and_value() -> None:
    stream = io.StringIO()
    logs.configure("info", "auto", stream)
    logging.getLogger("hypha.x").info("hello world")
    logging.getLogger("hypha.x").debug("hidden")
    logging.getLogger("libp2p.anything").info("hidden too")
    (line,) = stream.getvalue().splitlines()
    assert 'level=info logger=hypha.x msg="hello world"' in line
