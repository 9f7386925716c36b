"""Measures the resource usage of the jobs of this host. The functions block, so telemetry calls them in its thread."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from opentelemetry.metrics import Observation

from hypha_worker.runtimes.process.supervisor import PID_FILE
from hypha_worker.telemetry import Telemetry


@dataclass(frozen=True)
class Usage:
    """CPU time of one job since its start, its resident memory, and the bytes it read from and wrote to disks."""

    task_id: str
    cpu_s: float
    memory_bytes: int
    disk_bytes: int


def measure(jobs_dir: Path) -> Iterator[Usage]:
    """Yield the current usage of each job. Jobs that end meanwhile are skipped."""
    for pid_file in jobs_dir.glob(f"*/{PID_FILE}"):
        try:
            supervisor = psutil.Process(int(pid_file.read_text()))
            processes = [supervisor, *supervisor.children(recursive=True)]
            times = [process.cpu_times() for process in processes]
            disks = [process.io_counters() for process in processes]
            yield Usage(
                pid_file.parent.name,
                sum(t.user + t.system for t in times),
                sum(process.memory_info().rss for process in processes),
                sum(disk.read_bytes + disk.write_bytes for disk in disks),
            )
        except (psutil.Error, OSError, ValueError):
            continue


def observe(telemetry: Telemetry, jobs_dir: Path) -> None:
    """Export the usage of each job whenever metrics are collected."""

    def read(field: str) -> Iterable[Observation]:
        return [Observation(getattr(usage, field), {"task": usage.task_id}) for usage in measure(jobs_dir)]

    for name, unit, description, field in (
        ("cpu_time", "s", "CPU time of a job's processes", "cpu_s"),
        ("memory", "By", "Resident memory of a job's processes", "memory_bytes"),
        ("disk_io", "By", "Bytes that a job's processes read from and wrote to disks", "disk_bytes"),
    ):
        telemetry.observe(f"hypha.worker.job.{name}", unit, description, partial(read, field))
