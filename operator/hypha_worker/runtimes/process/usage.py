"""Measures what the jobs of this host use. The functions block, so telemetry calls them in its own thread."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from opentelemetry.metrics import Observation

from hypha_worker.runtimes.process.supervisor import PID_FILE
from hypha_worker.telemetry import Telemetry


@dataclass(frozen=True)
class Usage:
    """What one job uses: CPU time since its start, resident memory, and bytes read from and written to disks."""

    task_id: str
    cpu_s: float
    memory_bytes: int
    disk_bytes: int


def measure(jobs_dir: Path) -> Iterator[Usage]:
    """Yield what each job uses now. A job that ends meanwhile is left out."""
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
    """Export what each job uses whenever metrics are collected."""

    def cpu() -> Iterable[Observation]:
        return [Observation(usage.cpu_s, {"task": usage.task_id}) for usage in measure(jobs_dir)]

    def memory() -> Iterable[Observation]:
        return [Observation(usage.memory_bytes, {"task": usage.task_id}) for usage in measure(jobs_dir)]

    def disk() -> Iterable[Observation]:
        return [Observation(usage.disk_bytes, {"task": usage.task_id}) for usage in measure(jobs_dir)]

    telemetry.observe("hypha.worker.job.cpu_time", "s", "CPU time of a job's processes", cpu)
    telemetry.observe("hypha.worker.job.memory", "By", "Resident memory of a job's processes", memory)
    telemetry.observe("hypha.worker.job.disk_io", "By", "What a job's processes read and wrote on disks", disk)
