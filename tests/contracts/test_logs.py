import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_contracts import logs
from hypha_contracts.logs import HumanFormatter, JsonFormatter, LogfmtFormatter
from hypha_contracts.text import MAX_CHARS
from support.hostile_text import HOSTILE


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """Leave the process's logging as it was."""
    handlers, level, hook = logging.root.handlers[:], logging.root.level, sys.excepthook
    yield
    sys.excepthook = hook
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


FORMATTERS = [HumanFormatter(colour=False), LogfmtFormatter(), JsonFormatter()]


@pytest.mark.parametrize("formatter", FORMATTERS, ids=lambda formatter: type(formatter).__name__)
@given(text=st.text(st.characters()) | st.text(st.sampled_from(HOSTILE)))
def test_the_text_of_a_peer_stays_in_its_line_and_shows_each_character(formatter: logging.Formatter, text: str) -> None:
    line = formatter.format(record("said %s", text))
    assert line.isprintable()
    assert not set(line) & set(HOSTILE)


@pytest.mark.parametrize("formatter", FORMATTERS, ids=lambda formatter: type(formatter).__name__)
def test_the_text_of_a_peer_in_an_exception_or_in_output_cannot_pass_for_a_line_of_the_log(
    formatter: logging.Formatter,
) -> None:
    forged = "x\n12:30:01 INFO    \x1b[2Jall is well\u202e"
    try:
        raise ValueError(forged)
    except ValueError:
        failed = record("oh", level=logging.ERROR, exc=True)
    failed.lines = [forged]
    first, *others = formatter.format(failed).split("\n")
    assert all(line.startswith("  | ") for line in others)
    assert not set("".join([first, *others])) & set(HOSTILE)


@pytest.mark.parametrize("formatter", FORMATTERS, ids=lambda formatter: type(formatter).__name__)
def test_a_record_is_cut_to_a_maximum(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("\n".join(100_000 * ["x"]))
    except ValueError:
        failed = record("y" * 10_000_000, level=logging.ERROR, exc=True)
    assert len(formatter.format(failed)) < 2 * MAX_CHARS


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


@pytest.mark.parametrize("log_format", ["human", "logfmt", "json"])
def test_the_error_that_ends_a_process_is_logged_and_escaped(log_format: str) -> None:
    program = (
        f"from hypha_contracts import logs; logs.configure('info', {log_format!r}); raise ValueError('\\x1b[2J\\u202e')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "ValueError" in ended.stderr
    assert not (set(ended.stderr) - {"\n"}) & set(HOSTILE)
