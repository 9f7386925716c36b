"""Background processes are known by pid file and start time, and end when they are told to or their parent ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.processes import Processes, Program, StartError
from e2e.cluster.tools import ROOT
from support.waiting import until


def sleeper(directory: Path, script: str = "echo ready; exec sleep 600") -> Processes:
    log = directory / "sleeper.log"
    program = Program("sleeper", ("sh", "-c", script), lambda: "ready" in log.read_text())
    return Processes(directory, [program], die_with_parent=True)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = sleeper(tmp_path)
    started.up()
    yield started
    started.down()


def test_a_program_that_runs_is_not_started_again(processes: Processes) -> None:
    pid = processes.pid("sleeper")
    processes.up()
    assert processes.pid("sleeper") == pid


def test_another_process_under_the_same_id_is_not_taken_for_it(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "sleeper.pid").write_text(f"{os.getpid()} 1")
    kept = processes.pid("sleeper")
    processes.stop("sleeper")
    assert kept is None
    processes.up()
    assert processes.pid("sleeper")


def test_a_program_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no such flag"):
        sleeper(tmp_path, "echo no such flag; exit 1").up()


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = sleeper(tmp_path, "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    stubborn.up()
    stubborn.stop("sleeper", grace_s=0.1)
    assert stubborn.pid("sleeper") is None


def test_a_killed_program_can_be_started_again(processes: Processes) -> None:
    before = processes.pid("sleeper")
    processes.signal("sleeper", signal.SIGKILL)
    until(lambda: processes.pid("sleeper") is None)
    processes.up()
    assert processes.pid("sleeper") not in {None, before}


def test_programs_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    script = (
        f"import time, pathlib, test_processes as t; t.sleeper(pathlib.Path({str(tmp_path)!r})).up(); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'cluster'}"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as parent:
        until((tmp_path / "sleeper.pid").exists)
        assert sleeper(tmp_path).pid("sleeper")
        parent.kill()
    until(lambda: sleeper(tmp_path).pid("sleeper") is None)
