import subprocess
import sys
from pathlib import Path

from hypha_worker.runtimes.process.supervisor import PID_FILE
from hypha_worker.runtimes.process.usage import measure

BUSY = """
import subprocess, sys, time
ballast = bytearray(64 * 1024 * 1024)
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
print("ready", flush=True)
input()
"""


def test_the_usage_of_a_job_includes_all_its_processes(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (tmp_path / "task").mkdir()
        (tmp_path / "task" / PID_FILE).write_text(str(process.pid))
        (usage,) = measure(tmp_path)
        process.communicate()
    assert usage.task_id == "task"
    assert usage.cpu_s >= 0.3
    assert usage.memory_bytes > 64 * 1024 * 1024


def test_ended_jobs_have_no_usage(tmp_path: Path) -> None:
    for name, pid in (("gone", str(2**22 + 1)), ("damaged", "x"), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / PID_FILE).write_text(pid)
    assert list(measure(tmp_path)) == []
