"""Which ends of an executor are crashes, and what a restart leaves behind."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hypha_executor.restart import record
from hypha_executor.telemetry import Telemetry
from support.waiting import until


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(program, *arguments), capture_output=True, text=True, timeout=60, check=False)


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "hypha_executor.restart", sys.executable, "-c", program, *arguments]


COUNTED = """
import os, pathlib, sys
runs = pathlib.Path(sys.argv[1])
runs.write_text(runs.read_text() + os.environ.get("HYPHA_RESTART", "0").split()[0] + " ")
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").touch()
    return tmp_path / "runs"


@pytest.mark.parametrize("code", [0, 2, 3, 143])
def test_an_end_that_is_final_is_passed_on(runs: Path, code: int) -> None:
    ended = run(f"{COUNTED}sys.exit({code})", str(runs))
    assert (ended.returncode, runs.read_text()) == (code, "0 ")


@pytest.mark.parametrize(
    ("crash", "code", "says"),
    [
        ("sys.exit(1)", 1, "it failed with exit code 1"),
        ("raise RuntimeError", 1, "it failed with exit code 1"),
        ("os.kill(os.getpid(), 9)", 137, "it was ended by SIGKILL"),
        ("os.abort()", 134, "it was ended by SIGABRT"),
    ],
)
def test_a_crash_is_repeated_twice_at_most(runs: Path, crash: str, code: int, says: str) -> None:
    ended = run(COUNTED + crash, str(runs))
    assert (ended.returncode, runs.read_text()) == (code, "0 1 2 ")
    assert ended.stdout.splitlines() == [f"executor: {says}; restart {n} of 2" for n in (1, 2)]


def test_an_executor_that_recovers_succeeds(runs: Path) -> None:
    ended = run(f"{COUNTED}sys.exit('HYPHA_RESTART' not in os.environ)", str(runs))
    assert (ended.returncode, runs.read_text()) == (0, "0 1 ")


def test_the_crashed_executors_descendants_are_gone_before_the_next_start(runs: Path) -> None:
    program = f"""{COUNTED}
import subprocess, time
if "HYPHA_RESTART" not in os.environ:
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    runs.with_name("left").write_text(str(left.pid))
    os.kill(os.getpid(), 9)
"""
    assert run(program, str(runs)).returncode == 0
    assert not psutil.pid_exists(int(runs.with_name("left").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_executor_ends_once_and_is_not_started_again(runs: Path, number: signal.Signals) -> None:
    program = f"""{COUNTED}
import signal, time
def end(*_):
    runs.write_text(runs.read_text() + "told ")
    sys.exit(1)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
runs.with_name("ready").touch()
time.sleep(600)
"""
    with subprocess.Popen(command(program, str(runs)), start_new_session=True) as supervisor:
        until(runs.with_name("ready").exists)
        supervisor.send_signal(number)
        assert supervisor.wait(20) == 1
    assert runs.read_text() == "0 told "


def test_a_program_that_does_not_exist_is_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "hypha_executor.restart", "no-such-trainer"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: no-such-trainer cannot be started: No such file or directory\n",
    )


def test_a_restart_is_a_span_from_the_crash_on_and_is_counted() -> None:
    sent: list[dict[str, object]] = []
    telemetry = Telemetry(sent.append, {"TRACEPARENT": f"00-{'ab' * 16}-{'cd' * 8}-01"})
    assert record(telemetry, {"HYPHA_RESTART": "2 1000"}) == 2
    assert record(telemetry, {}) == 0
    telemetry.close()
    [batch] = sent
    [span] = batch["spans"]
    assert (span["name"], span["start_ns"], span["attributes"]) == ("restart", 1000, {"number": 2})
    assert [(m["name"], m["value"]) for m in batch["metrics"]] == [("hypha.job.restarts", 1)]
