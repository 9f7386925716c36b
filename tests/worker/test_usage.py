import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hypha_worker.runtimes.process.gpus import Gpus, GpuUse
from hypha_worker.runtimes.process.supervisor import PID_FILE
from hypha_worker.runtimes.process.usage import measure

BUSY = """
import subprocess, sys, time
ballast = bytearray(64 * 1024 * 1024)
end = time.process_time() + 0.4
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
        (usage,) = measure(tmp_path, Gpus())
        process.communicate()
    assert usage.task_id == "task"
    assert usage.processes == 2
    assert usage.user_s + usage.system_s >= 0.3
    assert usage.memory_bytes > 64 * 1024 * 1024


BURN = """
import time
while time.process_time() < 0.6:
    pass
"""
CHILD_ENDED = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BURN!r}], check=True)
print("ready", flush=True)
input()
"""


def test_what_an_ended_process_of_a_job_used_still_counts(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD_ENDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (tmp_path / "task").mkdir()
        (tmp_path / "task" / PID_FILE).write_text(str(process.pid))
        (usage,) = measure(tmp_path, Gpus())
        process.communicate(b"\n")
    assert usage.processes == 1
    assert usage.user_s + usage.system_s >= 0.5, "0.6 s; the kernel may leave out some ticks"


def test_ended_jobs_have_no_usage(tmp_path: Path) -> None:
    for name, pid in (("gone", str(2**22 + 1)), ("damaged", "x"), ("empty", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / PID_FILE).write_text(pid)
    assert list(measure(tmp_path, Gpus())) == []


class RenderedNvml:
    """NVIDIA's library in the form that its documentation describes. No GPU is needed."""

    NVMLError = OSError

    def nvmlInit(self) -> None: ...  # noqa: N802 - its names

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, device: int) -> list[Any]:  # noqa: N802
        found = [SimpleNamespace(pid=7, usedGpuMemory=30), SimpleNamespace(pid=8, usedGpuMemory=None)]
        return found if device == 1 else []

    def nvmlDeviceGetProcessUtilization(self, _device: int, _since: int) -> list[Any]:  # noqa: N802
        return [
            SimpleNamespace(pid=7, timeStamp=1, smUtil=90),
            SimpleNamespace(pid=7, timeStamp=2, smUtil=40),
            SimpleNamespace(pid=9, timeStamp=2, smUtil=50),
        ]


def test_gpus_are_measured_in_the_form_of_the_nvidia_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests the form only: this machine needs no GPU."""
    monkeypatch.setattr("hypha_worker.runtimes.process.gpus.importlib.import_module", lambda _name: RenderedNvml())
    assert Gpus().use_of({7, 8}) == {1: GpuUse(30, 0.4)}
