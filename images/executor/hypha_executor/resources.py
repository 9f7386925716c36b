"""What the container of an executor uses: CPU, memory and disks from its control group, GPUs from NVML.

On a host without containers, the worker measures the processes itself, and nothing is read here.
"""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

_GROUP: Final = Path("/sys/fs/cgroup")
_MICROSECONDS: Final = 1e6
_PERCENT: Final = 100.0


class Recorder(Protocol):
    """Records metrics, as `hypha_executor.telemetry.Telemetry` does."""

    def add(self, metric: str, increase: float, attributes: dict[str, str] | None = None) -> None:
        """Increase a counter."""

    def set(self, metric: str, value: float, attributes: dict[str, str] | None = None) -> None:
        """Set the current value of a metric."""


class Resources:
    """Measures this container.

    Args:
        group: the directory of the container's own control group (version 2). The root group of a host, which has no
            limits of its own, counts as none.
    """

    def __init__(self, group: Path = _GROUP) -> None:
        self._group = group if (group / "memory.current").exists() else None
        self._totals: dict[tuple[str, str, str], float] = {}
        self._nvml: Any = None
        self._looked_for_gpus = False

    def measure(self, recorder: Recorder) -> None:
        """Record the usage, of counters the increase since the last call. What cannot be read is left out."""
        if self._group is None:
            return
        for total in self._read_totals(self._group):
            metric, attribute, value, amount = total
            increase = amount - self._totals.get((metric, attribute, value), 0.0)
            self._totals[metric, attribute, value] = amount
            if increase > 0:
                recorder.add(metric, increase, {attribute: value})
        with contextlib.suppress(OSError, ValueError):
            recorder.set("hypha.job.memory.usage", float((self._group / "memory.current").read_text()))
        if not self._looked_for_gpus:
            self._looked_for_gpus, self._nvml = True, _open_nvml()
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                _measure_gpus(self._nvml, recorder)

    def _read_totals(self, group: Path) -> Iterator[tuple[str, str, str, float]]:
        with contextlib.suppress(OSError, ValueError):
            cpu = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
            for mode in ("user", "system"):
                yield "hypha.job.cpu.time", "cpu.mode", mode, int(cpu.get(f"{mode}_usec", 0)) / _MICROSECONDS
        with contextlib.suppress(OSError, ValueError):
            pairs = [pair.partition("=") for pair in (group / "io.stat").read_text().split()]
            for direction, key in (("read", "rbytes"), ("write", "wbytes")):
                amount = sum(int(value) for name, _, value in pairs if name == key)
                yield "hypha.job.disk.io", "disk.io.direction", direction, amount


def _open_nvml() -> Any:
    """Return NVIDIA's library, or None if this container has no package or no driver for it."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # there are many reasons, and all of them mean that there is no NVIDIA GPU to look at
        return None
    return nvml


def _measure_gpus(nvml: Any, recorder: Recorder) -> None:
    for index in range(nvml.nvmlDeviceGetCount()):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = {"hw.id": str(index)}
        recorder.set("hw.gpu.utilization", nvml.nvmlDeviceGetUtilizationRates(device).gpu / _PERCENT, gpu)
        recorder.set("hw.gpu.memory.usage", float(nvml.nvmlDeviceGetMemoryInfo(device).used), gpu)
