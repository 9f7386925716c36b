"""Measures what processes use of the NVIDIA GPUs of this host, by NVIDIA's library (package nvidia-ml-py)."""

import importlib
from contextlib import suppress
from typing import Any, Final, NamedTuple

_PERCENT: Final = 100.0


class GpuUse(NamedTuple):
    """What some processes use of one GPU.

    Attributes:
        utilization: the share of time in which they kept it busy, from 0 to 1.
    """

    memory_bytes: int
    utilization: float


class Gpus:
    """The GPUs of this host. Without the package or a driver there are none."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._opened = False

    def use_of(self, pids: set[int]) -> dict[int, GpuUse]:
        """Return by GPU, counted from 0, what these processes use. GPUs that they do not use are left out (blocks)."""
        if not self._opened:
            self._opened, self._nvml = True, _open()
        if self._nvml is None:
            return {}
        found = {}
        with suppress(self._nvml.NVMLError):
            for index in range(self._nvml.nvmlDeviceGetCount()):
                device = self._nvml.nvmlDeviceGetHandleByIndex(index)
                running = self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
                own = [process for process in running if process.pid in pids]
                if own:
                    memory_bytes = sum(process.usedGpuMemory or 0 for process in own)
                    found[index] = GpuUse(memory_bytes, self._utilization(device, pids))
        return found

    def _utilization(self, device: Any, pids: set[int]) -> float:
        """Return the sum of the latest utilization of each process. The driver refuses if it has no samples."""
        latest: dict[int, tuple[int, int]] = {}
        with suppress(self._nvml.NVMLError):
            for sample in self._nvml.nvmlDeviceGetProcessUtilization(device, 0):
                if sample.pid in pids:
                    latest[sample.pid] = max(latest.get(sample.pid, (0, 0)), (sample.timeStamp, sample.smUtil))
        return min(1.0, sum(percent for _, percent in latest.values()) / _PERCENT)


def _open() -> Any:
    """Return NVIDIA's library, or None if the package or the driver is missing."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # there are many reasons, and all of them mean that there is nothing to measure
        return None
    return nvml
