"""Metrics of a process itself, by OpenTelemetry's semantic conventions."""

import time
from collections.abc import Iterable
from typing import Final

import psutil
from opentelemetry.metrics import Observation

from hypha_telemetry.instruments import Instruments
from hypha_telemetry.metric import Kind, Metric

CPU: Final = Metric("process.cpu.time", Kind.COUNTER, "s", "CPU time of the process", {"cpu.mode": "`user`, `system`"})
MEMORY: Final = Metric("process.memory.usage", Kind.UP_DOWN_COUNTER, "By", "Resident memory of the process")
VIRTUAL: Final = Metric("process.memory.virtual", Kind.UP_DOWN_COUNTER, "By", "Virtual memory of the process")
DISK: Final = Metric(
    "process.disk.io",
    Kind.COUNTER,
    "By",
    "Bytes that the process read from and wrote to disks",
    {"disk.io.direction": "`read`, `write`"},
)
THREADS: Final = Metric("process.thread.count", Kind.UP_DOWN_COUNTER, "{thread}", "Threads of the process")
DESCRIPTORS: Final = Metric(
    "process.unix.file_descriptor.count",
    Kind.UP_DOWN_COUNTER,
    "{file_descriptor}",
    "Open file descriptors of the process",
)
UPTIME: Final = Metric("process.uptime", Kind.GAUGE, "s", "Time since the process started")

PROCESS_METRICS: Final = (CPU, MEMORY, VIRTUAL, DISK, THREADS, DESCRIPTORS, UPTIME)


def observe_process(instruments: Instruments) -> None:
    """Export the metrics of this process."""
    process = psutil.Process()

    def cpu() -> Iterable[Observation]:
        times = process.cpu_times()
        return [Observation(times.user, {"cpu.mode": "user"}), Observation(times.system, {"cpu.mode": "system"})]

    def disk() -> Iterable[Observation]:
        counters = process.io_counters()
        return [
            Observation(counters.read_bytes, {"disk.io.direction": "read"}),
            Observation(counters.write_bytes, {"disk.io.direction": "write"}),
        ]

    def uptime() -> Iterable[Observation]:
        return [Observation(time.time() - process.create_time())]

    instruments.observe(CPU, cpu)
    instruments.observe(MEMORY, lambda: [Observation(process.memory_info().rss)])
    instruments.observe(VIRTUAL, lambda: [Observation(process.memory_info().vms)])
    instruments.observe(DISK, disk)
    instruments.observe(THREADS, lambda: [Observation(process.num_threads())])
    instruments.observe(DESCRIPTORS, lambda: [Observation(process.num_fds())])
    instruments.observe(UPTIME, uptime)
