"""The logs of a job's bridge and executor in one."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_worker.errors import NodeError
from hypha_worker.runtimes.process import directories
from hypha_worker.status.logs import JobLogs, Line, in_order, parse_line
from support.waiting import until

TASK = str(uuid4())


def stamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.fixture
def logs(tmp_path: Path) -> JobLogs:
    for name in ("jobs", "logs"):
        (tmp_path / name).mkdir()
    return JobLogs(tmp_path / "jobs", tmp_path / "logs")


def job(directory: Path, task: str = TASK, bridge: str = "", executor: str = "") -> Path:
    directories.make_marked(directory / task)
    (directory / task / "bridge.log").write_text(bridge)
    (directory / task / "output.log").write_text(executor)
    return directory / task


def texts(lines: Iterator[list[Line]]) -> list[str]:
    return [f"{line.source}: {line.text}" for some in lines for line in some]


def test_lines_of_both_are_shown_by_time(logs: JobLogs) -> None:
    bridge = f'time={stamp(1)} level=info msg="starts"\ntime={stamp(4)} level=info msg="sends"\n'
    executor = f"{stamp(2)} loads\n{stamp(3)} trains\n{stamp(5)} ends\n"
    job(logs.live, bridge=bridge, executor=executor)
    assert texts(logs.lines(TASK, follow=False)) == [
        'bridge: level=info msg="starts"',
        "executor: loads",
        "executor: trains",
        'bridge: level=info msg="sends"',
        "executor: ends",
    ]


def test_a_line_without_a_time_belongs_to_the_line_before_it(logs: JobLogs) -> None:
    traceback = f"{stamp(1)} fails\n"
    bridge = f"time={stamp(1)} level=error\nTraceback\n  in main\ntime={stamp(3)} level=info\n"
    job(logs.live, bridge=bridge, executor=traceback + f"{stamp(2)} goes on\n")
    assert texts(logs.lines(TASK, follow=False)) == [
        "bridge: level=error",
        "bridge: Traceback",
        "bridge:   in main",
        "executor: fails",
        "executor: goes on",
        "bridge: level=info",
    ]


def test_the_full_file_before_the_present_one_is_shown_too(logs: JobLogs) -> None:
    directory = job(logs.live, executor=f"{stamp(2)} second\n")
    (directory / "output.log.1").write_text(f"{stamp(1)} first\n")
    assert texts(logs.lines(TASK, follow=False)) == ["executor: first", "executor: second"]


def test_the_last_line_of_an_ended_job_needs_no_line_break(logs: JobLogs) -> None:
    job(logs.ended, executor=f"{stamp(1)} the last words")
    assert texts(logs.lines(TASK, follow=True)) == ["executor: the last words"]


def test_following_shows_new_lines_through_a_change_of_the_file_until_the_job_has_ended(logs: JobLogs) -> None:
    directory, shown = job(logs.live, executor=f"{stamp(1)} begins\n"), list[str]()

    def follow() -> None:
        for some in logs.lines(TASK, follow=True):
            shown.extend(line.text for line in some)

    follower = threading.Thread(target=follow)
    follower.start()
    until(lambda: shown == ["begins"])
    with (directory / "output.log").open("a") as file:
        file.write(f"{stamp(2)} goes on\n{stamp(3)} half a li")
    until(lambda: shown == ["begins", "goes on"])
    with (directory / "output.log").open("a") as file:
        file.write("ne\n")
    (directory / "output.log").rename(directory / "output.log.1")
    (directory / "output.log").write_text(f"{stamp(4)} in a new file\n")
    until(lambda: shown[2:] == ["half a line", "in a new file"])
    with (directory / "output.log").open("a") as file:
        file.write(f"{stamp(5)} ends")
    directory.rename(logs.ended / TASK)
    follower.join(20)
    assert not follower.is_alive()
    assert shown[4:] == ["ends"]


def test_a_job_is_found_by_the_beginning_of_its_task_id(logs: JobLogs) -> None:
    job(logs.live)
    assert logs.find(TASK[:6].upper()) == logs.find(TASK) == TASK


def test_an_ambiguous_or_unknown_name_lists_what_there_is(logs: JobLogs) -> None:
    first, second = f"aaaa{TASK[4:]}", f"aaab{TASK[4:]}"
    job(logs.live, first)
    job(logs.ended, second)
    with pytest.raises(NodeError, match=r"aaa may mean 2 jobs: .*Write more of the task id") as ambiguous:
        logs.find("aaa")
    assert first in str(ambiguous.value)
    assert second in str(ambiguous.value)
    with pytest.raises(NodeError, match=r"no job zzz\\x1b has logs in .*There are .*aaa"):
        logs.find("zzz\x1b")


def test_without_any_logs_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="There are none"):
        JobLogs(tmp_path / "jobs", tmp_path / "logs").find("a")


def test_other_directories_are_no_jobs(logs: JobLogs) -> None:
    (logs.ended / TASK).mkdir()
    (logs.ended / TASK / "notes").touch()
    with pytest.raises(NodeError, match="There are none"):
        logs.find(TASK)


LINES = st.lists(st.tuples(st.integers(0, 5), st.text(st.characters(codec="utf-8"), max_size=5)))


@given(LINES, LINES)
def test_no_line_is_lost_and_the_lines_of_a_log_keep_their_order(
    bridge: list[tuple[int, str]], executor: list[tuple[int, str]]
) -> None:
    first = [Line(at, "bridge", text) for at, text in bridge]
    second = [Line(at, "executor", text) for at, text in executor]
    merged = in_order(first, second)
    assert [line.text for line in merged if line.source == "bridge"] == [line.text for line in first]
    assert [line.text for line in merged if line.source == "executor"] == [line.text for line in second]


@given(st.text())
def test_any_line_can_be_read(raw: str) -> None:
    assert parse_line("executor", raw, 7.0) == Line(7.0, "executor", raw.rstrip("\r"))


@pytest.mark.parametrize(
    "raw", ["2026-13-40T99:99:99Z x", "2026-02-30T00:00:00Z x", "time=2026-01-01T24:00:00Z x", "0001-01-01T00:00:00Z x"]
)
def test_a_time_that_does_not_exist_is_no_time(raw: str) -> None:
    assert parse_line("executor", raw, 7.0) == Line(7.0, "executor", raw)
