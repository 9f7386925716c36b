"""The supervisor: what it costs, what it survives, and that nothing escapes it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hypha_worker import files
from hypha_worker.job import Failed, Finished
from hypha_worker.runtimes.process import limits, processes, supervisor
from hypha_worker.runtimes.process.processes import BoundedLog
from hypha_worker.runtimes.process.supervisor import Deadline
from support import jobs
from support.rig import left_behind, open_rig, output_of

pytestmark = pytest.mark.anyio

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


def supervisor_of(work_dir: Path, job: object) -> int:
    return int((work_dir / "jobs" / str(job) / supervisor.PID_FILE).read_text())


def test_the_supervisor_imports_only_the_standard_library() -> None:
    command = supervisor.command(Path("plan.json"), 3, 4)
    program = command[command.index("-c") + 1].replace("main(sys.argv[1:])", "print('\\n'.join(sys.modules))")
    modules = subprocess.run([*command[:3], "-c", program], capture_output=True, text=True, check=True).stdout.split()
    tops = {module.partition(".")[0] for module in modules}
    assert tops - sys.stdlib_module_names - {"__main__", "sitecustomize", "_distutils_hack"} == {"hypha_worker"}
    assert "asyncio" not in tops


async def test_the_supervisor_is_small_and_idle_while_its_job_runs(work_dir: Path) -> None:
    silent = "import os, time; print('ready', flush=True); os.close(1); os.close(2); time.sleep(600)"
    async with open_rig(jobs.config(work_dir, silent)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        pid = supervisor_of(work_dir, job.task_id)
        before = cpu_ticks(pid)
        await trio.sleep(1)
        assert cpu_ticks(pid) - before <= 5  # hundredths of a second
        assert resident_kib(pid) < 24 * 1024
        await rig.runtime.terminate(job.task_id, "enough")


def resident_kib(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_daemons_without_environment_or_session_do_not_escape(work_dir: Path) -> None:
    executor = """
import os, sys, time
for _ in range(20):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
time.sleep(1)
"""
    async with open_rig(jobs.config(work_dir, executor, limits=False)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await rig.started(job.task_id)
        pid = supervisor_of(work_dir, job.task_id)
        family = set()
        while len(family) < 20:
            family |= processes.descendants(pid)
            await trio.sleep(0.01)
        assert isinstance(await rig.end_of(job.task_id), Finished)
        assert not [pid for pid in family if "time.sleep(600)" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def test_a_fork_bomb_is_killed(work_dir: Path) -> None:
    bomb = """
import os, time
print("ready", flush=True)
for _ in range(6):
    os.fork()
while True:
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
    time.sleep(0.05)
"""
    async with open_rig(jobs.config(work_dir, bomb, limits=False)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        await rig.runtime.terminate(job.task_id, "enough")
        assert isinstance(await rig.end_of(job.task_id), Failed)
        assert left_behind(work_dir) == []


async def test_a_signal_from_another_process_ends_the_job_cleanly(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, SLEEP)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        os.kill(supervisor_of(work_dir, job.task_id), signal.SIGTERM)
        reason = "the supervisor received a signal to end that its node did not send"
        assert await rig.end_of(job.task_id) == Failed(job.task_id, reason, ("ready",))


async def test_a_directory_that_is_hard_to_delete_is_deleted(work_dir: Path) -> None:
    executor = """
import os
os.makedirs("sealed/inside"); os.chmod("sealed", 0)
here = "."
for _ in range(1500):
    os.mkdir("d"); os.chdir("d")
"""
    async with open_rig(jobs.config(work_dir, executor)) as rig:
        assert isinstance(await rig.run(jobs.job()), Finished)
        assert left_behind(work_dir) == []


async def test_the_kernel_kills_the_executor_first(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, SLEEP)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        pid = supervisor_of(work_dir, job.task_id)
        raised = [oom_score(child) > oom_score(os.getpid()) for child in processes.descendants(pid)]
        assert sorted(raised) == [False, True]
        await rig.runtime.terminate(job.task_id, "enough")


async def test_a_job_leaves_the_processor_to_the_node(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, SLEEP)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        pid = supervisor_of(work_dir, job.task_id)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        bridge_and_executor = processes.descendants(pid)
        assert len(bridge_and_executor) == 2
        assert all(os.getpriority(os.PRIO_PROCESS, child) == own + 5 for child in bridge_and_executor)
        assert niceness_of_session(pid) in (None, 5)
        await rig.runtime.terminate(job.task_id, "enough")


def niceness_of_session(pid: int) -> int | None:
    """Return the niceness of a process's session, or None where the kernel schedules no sessions."""
    file = Path(f"/proc/{pid}/autogroup")
    return int(file.read_text().rpartition(" ")[2]) if file.exists() else None


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


class TestDeadline:
    """The deadline is the lease's, and the wall clock may step."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "deadline"

    def test_the_deadline_passes_after_the_grace_period(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text(repr(time.time() + 10))
        deadline = Deadline(path, grace_s=5)
        assert not deadline.passed()
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 14)
        assert not deadline.passed()
        monkeypatch.setattr(time, "monotonic", lambda: now + 16)
        assert deadline.passed()

    def test_a_renewal_extends_the_deadline(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path.write_text(repr(time.time() + 10))
        deadline = Deadline(path, grace_s=5)
        assert not deadline.passed()
        files.replace_file(path, repr(time.time() + 100), durable=False)
        now = time.monotonic()
        assert not deadline.passed()
        monkeypatch.setattr(time, "monotonic", lambda: now + 50)
        assert not deadline.passed()

    @pytest.mark.parametrize("step_s", [-86_400, 86_400])
    def test_a_step_of_the_wall_clock_does_not_move_the_deadline(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, step_s: float
    ) -> None:
        path.write_text(repr(time.time() + 10))
        deadline = Deadline(path, grace_s=5)
        assert not deadline.passed()
        monotonic, wall = time.monotonic(), time.time()
        monkeypatch.setattr(time, "time", lambda: wall + step_s)
        monkeypatch.setattr(time, "monotonic", lambda: monotonic + 14)
        assert not deadline.passed()
        monkeypatch.setattr(time, "monotonic", lambda: monotonic + 16)
        assert deadline.passed()

    def test_a_missing_or_invalid_file_keeps_the_last_deadline(self, path: Path) -> None:
        deadline = Deadline(path, grace_s=5)
        assert not deadline.passed()
        path.write_text("soon")
        assert not deadline.passed()


@given(st.lists(st.binary(max_size=300), max_size=50))
def test_a_log_stays_within_its_limit_and_keeps_the_last_bytes(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "output.log"
    log = BoundedLog(path, 1000)
    for piece in pieces:
        log.write(piece)
    files = [path.with_name("output.log.1"), path]
    kept = b"".join(file.read_bytes() for file in files if file.exists())
    assert all(file.stat().st_size <= 1000 for file in files if file.exists())
    assert b"".join(pieces).endswith(kept)
    assert len(kept) >= min(700, sum(map(len, pieces)))


@given(st.lists(st.binary(max_size=300).map(lambda data: data.replace(b"Z", b"z")), max_size=50))
def test_each_line_of_a_log_begins_with_its_time_however_it_arrives_in_pieces(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "output.log"
    log = BoundedLog(path, 1 << 20, stamps=True)
    for piece in pieces:
        log.write(piece)
    stamped = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ")
    lines = path.read_bytes().split(b"\n")
    assert all(stamped.match(line) for line in lines[:-1])
    assert b"\n".join(stamped.sub(b"", line, count=1) for line in lines) == b"".join(pieces)


def test_a_flood_of_line_breaks_stays_within_the_limit_of_a_log_in_spite_of_their_times(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "output.log", 4096, stamps=True)
    for _ in range(3):
        log.write(b"\n" * 65_536)
    assert all(file.stat().st_size <= 4096 for file in tmp_path.iterdir())


HOSTILE = """
import os, signal, sys, time
supervisor = os.getppid()
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    code = "import os, time; os.kill(int(os.sys.argv[1]), int(os.sys.argv[2])); time.sleep(600)"
    os.execve(sys.executable, [sys.executable, "-c", code, str(supervisor), str(int(signal.SIGNAL)), "WORK"], {})
time.sleep(600)
"""


@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL"])
async def test_a_job_that_stops_or_kills_its_supervisor_ends_with_its_daemons(work_dir: Path, number: str) -> None:
    if number == "SIGKILL" and not limits.find_hierarchies():
        pytest.skip("without control groups nothing tells such a daemon from other programs")
    mark = f"hostile-{work_dir.name}"
    executor = HOSTILE.replace("SIGNAL", number).replace("WORK", mark)
    async with open_rig(jobs.config(work_dir, executor)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await rig.started(job.task_id)
        pid = supervisor_of(work_dir, job.task_id)
        while state_of(pid) not in ("T", ""):  # noqa: ASYNC110 - another process brings it about
            await trio.sleep(0.01)
        await rig.runtime.terminate(job.task_id, "its lease expired")
        assert isinstance(await rig.end_of(job.task_id), Failed)
        assert left_behind(work_dir) == []
        assert not [pid for pid in processes._processes() if command_of(pid).endswith(f"{mark}\0")]


def state_of(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""
