"""Checks GPUs: which there are, and whether the PyTorch build and the Accelerate configuration suit them."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_contracts.node_config import ExecutorConfig
from hypha_contracts.units import BYTES_PER_GB
from hypha_worker.runtimes.process.checks.executors import accelerate_files

_QUERY: Final = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_QUERY_S: Final = 10.0
_MIN_DRIVERS: Final = {"11": 450, "12": 525, "13": 580}
"""By major version of CUDA, the oldest driver that runs all its minor versions, from NVIDIA's compatibility page."""
_MAX_FILE_BYTES: Final = 64 * 1024


@dataclass(frozen=True)
class Gpu:
    """A GPU of this host. `driver` is the version of NVIDIA's driver, and empty for other vendors."""

    vendor: Literal["NVIDIA", "AMD"]
    name: str
    memory_gb: float
    driver: str = ""


def find_gpus(environ: Mapping[str, str], sys: Path = Path("/sys")) -> tuple[Gpu, ...]:
    """Return the GPUs of this host, by NVIDIA's nvidia-smi and AMD's kernel driver. Takes a second at most."""
    amd = [
        Gpu("AMD", memory.parents[1].name, int(memory.read_text()) / BYTES_PER_GB)
        for memory in sorted(sys.glob("class/drm/card*/device/mem_info_vram_total"))
    ]
    if (program := shutil.which("nvidia-smi", path=environ.get("PATH"))) is None:
        return tuple(amd)
    try:
        output = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_QUERY_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return tuple(amd)
    return (*parse_nvidia(output), *amd)


def parse_nvidia(output: str) -> Iterator[Gpu]:
    """Yield the GPUs in the output of nvidia-smi, one per line: name, memory in MiB and driver version."""
    for line in output.splitlines():
        name, memory_mib, driver = (part.strip() for part in line.rsplit(",", 2))
        if memory_mib.isdigit():  # [N/A] where the GPU has no memory of its own
            yield Gpu("NVIDIA", name, int(memory_mib) * 1024**2 / BYTES_PER_GB, driver)


def check(executors: list[ExecutorConfig], offered_gb: float, gpus: tuple[Gpu, ...]) -> Iterator[Finding]:
    """Yield whether what each executor says about devices suits the GPUs."""
    if not offered_gb:
        yield skipped("the worker offers no GPU memory")
        return
    for executor in executors:
        variant = torch_variant(executor)
        if variant is not None:
            yield judge_variant(executor, variant, gpus)
        for path in accelerate_files(executor):
            if (settings := _read_settings(path)) is not None:
                yield judge_accelerate(executor, settings, len(gpus))


def torch_variant(executor: ExecutorConfig) -> str | None:
    """Return the PyTorch build that the arguments name after `--extra`; the executor's default for its wheel."""
    for i, arg in enumerate(executor.args):
        if arg == "--extra" and i + 1 < len(executor.args):
            return executor.args[i + 1]
    return "mps_cu128" if any("hypha_accelerate_executor" in arg for arg in executor.args) else None


def judge_variant(executor: ExecutorConfig, variant: str, gpus: tuple[Gpu, ...]) -> Finding:
    """Return whether a PyTorch build runs on the GPUs."""
    build = f"executor {executor.descriptor}: the PyTorch build {variant}"
    if variant == "cpu":
        return failure(f"{build} uses no GPU, and the worker offers GPU memory", _choose(gpus))
    cuda = re.search(r"cu(\d\d)\d", variant)
    wanted = "NVIDIA" if cuda else "AMD" if variant.startswith("rocm") else None
    if wanted is None or not gpus:
        return skipped(f"{build} cannot be compared with the GPUs")
    if all(gpu.vendor != wanted for gpu in gpus):
        return failure(f"{build} is for GPUs of {wanted}, and this host has {_names(gpus)}", _choose(gpus))
    for gpu in gpus:
        needed = _MIN_DRIVERS.get(cuda[1], 0) if cuda else 0
        if gpu.driver and int(gpu.driver.partition(".")[0]) < needed:
            return failure(
                f"{build} needs NVIDIA's driver {needed} or newer, and this host has {gpu.driver}",
                "Update the driver, or choose a build for an older CUDA, such as --extra cu126.",
            )
    return ok(f"{build} suits {_names(gpus)}")


def judge_accelerate(executor: ExecutorConfig, settings: Mapping[str, str], gpus: int) -> Finding:
    """Return whether an Accelerate configuration suits the number of GPUs."""
    whose = f"executor {executor.descriptor}: its Accelerate configuration"
    processes = settings.get("num_processes", "1")
    if settings.get("use_cpu", "false").lower() == "true":
        return warning(f"{whose} says use_cpu: true, and the worker offers GPU memory", "Set use_cpu: false in it.")
    if processes.isdigit() and int(processes) > max(gpus, 1):
        return failure(
            f"{whose} starts {processes} processes, and this host has {gpus} GPUs",
            "Set num_processes to the number of GPUs, or run `accelerate config` again.",
        )
    return ok(f"{whose} suits {gpus} GPUs")


def _choose(gpus: tuple[Gpu, ...]) -> str:
    if not gpus:
        return "Offer no GPU memory, or install the GPU's driver."
    amd = all(gpu.vendor == "AMD" for gpu in gpus)
    return f"Use --extra {'rocm64' if amd else 'cu128'} in the executor's args."


def _names(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(f"{gpu.vendor} {gpu.name}".replace("NVIDIA NVIDIA", "NVIDIA") for gpu in gpus) or "no GPU"


def _read_settings(path: Path) -> dict[str, str] | None:
    """Return the top-level entries of an Accelerate configuration, which is a flat YAML file; None if unreadable."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_FILE_BYTES).splitlines()
    except OSError:
        return None
    pairs = (line.partition("#")[0].partition(":") for line in lines if line[:1].isalpha())
    return {key.strip(): value.strip().strip("'\"") for key, _, value in pairs}
