"""Measures the resource usage of the jobs of this host. The functions block, so telemetry calls them in its threads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from opentelemetry.metrics import Observation

from hypha_telemetry import job_metrics, node_metrics
from hypha_worker.runtimes.process.gpus import Gpus, GpuUse
from hypha_worker.runtimes.process.supervisor import PID_FILE
from hypha_worker.telemetry import Telemetry


@dataclass(frozen=True)
class Usage:
    """What the processes of one job use: CPU time and disk input and output since its start, and memory now."""

    task_id: str
    processes: int
    user_s: float
    system_s: float
    memory_bytes: int
    read_bytes: int
    written_bytes: int
    gpus: Mapping[int, GpuUse]


def measure(jobs_dir: Path, gpus: Gpus) -> Iterator[Usage]:
    """Yield the current usage of each job. Jobs that end meanwhile are skipped.

    The kernel adds what an ended process used to the process that waited for it, so no figure but memory falls.
    """
    for pid_file in jobs_dir.glob(f"*/{PID_FILE}"):
        try:
            supervisor = psutil.Process(int(pid_file.read_text()))
            processes = [supervisor, *supervisor.children(recursive=True)]
            times = [process.cpu_times() for process in processes]
            disks = [process.io_counters() for process in processes]
            yield Usage(
                pid_file.parent.name,
                len(processes),
                sum(time.user + time.children_user for time in times),
                sum(time.system + time.children_system for time in times),
                sum(process.memory_info().rss for process in processes),
                sum(disk.read_bytes for disk in disks),
                sum(disk.write_bytes for disk in disks),
                gpus.use_of({process.pid for process in processes}),
            )
        except (psutil.Error, OSError, ValueError):
            continue


def observe(telemetry: Telemetry, jobs_dir: Path) -> None:
    """Export the usage of each job whenever metrics are collected."""
    gpus = Gpus()

    def read(observations: Callable[[Usage], dict[str, float]], attribute: str) -> Iterable[Observation]:
        return [
            Observation(amount, {"task": usage.task_id} | ({attribute: value} if attribute else {}))
            for usage in measure(jobs_dir, gpus)
            for value, amount in observations(usage).items()
        ]

    def cpu(usage: Usage) -> dict[str, float]:
        return {"user": usage.user_s, "system": usage.system_s}

    def disk(usage: Usage) -> dict[str, float]:
        return {"read": usage.read_bytes, "write": usage.written_bytes}

    def gpu_memory(usage: Usage) -> dict[str, float]:
        return {str(index): use.memory_bytes for index, use in usage.gpus.items()}

    def gpu_utilization(usage: Usage) -> dict[str, float]:
        return {str(index): use.utilization for index, use in usage.gpus.items()}

    telemetry.observe(job_metrics.GPU_MEMORY, partial(read, gpu_memory, "hw.id"))
    telemetry.observe(job_metrics.GPU_UTILIZATION, partial(read, gpu_utilization, "hw.id"))
    telemetry.observe(node_metrics.JOB_CPU, partial(read, cpu, "cpu.mode"))
    telemetry.observe(node_metrics.JOB_DISK, partial(read, disk, "disk.io.direction"))
    telemetry.observe(node_metrics.JOB_MEMORY, partial(read, lambda usage: {"": usage.memory_bytes}, ""))
    telemetry.observe(node_metrics.JOB_PROCESSES, partial(read, lambda usage: {"": usage.processes}, ""))
