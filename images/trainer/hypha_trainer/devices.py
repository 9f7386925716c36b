"""Check, before the training, that the devices suit the lease and the accelerate configuration.

`find_devices` asks PyTorch. The other functions decide.
"""

import ctypes
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import is_fp8_available

from hypha_executor.errors import JobError


@dataclass(frozen=True)
class Demand:
    """What the lease and the accelerate configuration expect of the devices.

    Attributes:
        gpus: The number of GPUs of the lease; 0 if it has none, or if the worker does not say.
        processes: The number of processes of this trainer.
        cpu: Whether accelerate's configuration asks for the CPU.
        fewer_gpus_allowed: Whether the worker's owner allows fewer GPUs than the lease has, or none.
    """

    gpus: int
    processes: int
    cpu: bool
    fewer_gpus_allowed: bool


@dataclass(frozen=True)
class Devices:
    """The GPUs that PyTorch can use.

    Attributes:
        torch: PyTorch's version, and what it is built for.
        names: The names of the GPUs.
        reason: Why PyTorch sees no GPU, or no more of them.
    """

    torch: str
    names: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        seen = f"{len(self.names)} ({', '.join(sorted(set(self.names)))})" if self.names else "none"
        return f"{self.torch} sees {seen}: {self.reason}"


def read_demand(environ: Mapping[str, str], *, fewer_gpus_allowed: bool) -> Demand:
    """Return the demand that the environment states: the worker's LEASE_GPUS, and the variables of the launcher.

    Raises:
        JobError: LEASE_GPUS is not a number.
    """
    gpus = environ.get("LEASE_GPUS", "0")
    if not gpus.isdecimal():
        raise JobError(f"LEASE_GPUS is {gpus!r}; the worker must set it to the number of GPUs of the lease")
    cpu = environ.get("ACCELERATE_USE_CPU", "false").lower() in {"1", "true", "yes", "on"}
    return Demand(int(gpus), int(environ.get("WORLD_SIZE", "1")), cpu, fewer_gpus_allowed)


def check_devices(demand: Demand, devices: Devices) -> str | None:
    """Return a warning for the log, or None if the devices suit the demand.

    Raises:
        JobError: PyTorch can use fewer GPUs than the lease has, or than there are processes.
    """
    if demand.cpu:
        return _idle(demand.gpus, "use_cpu is true in the accelerate configuration") if demand.gpus else None
    seen = len(devices.names)
    if seen < demand.processes > 1:
        raise JobError(
            f"accelerate starts {demand.processes} processes, one for each GPU, but {devices}; "
            "set num_processes to the number of GPUs, or use_cpu: true"
        )
    if seen < demand.gpus:
        if not demand.fewer_gpus_allowed:
            raise JobError(
                f"the lease has {_count(demand.gpus)}, but {devices}; correct that, "
                "or add --allow-fewer-gpus to the executor's arguments in the worker's configuration"
            )
        return f"the lease has {_count(demand.gpus)}, but {devices}"
    if idle := demand.gpus - demand.processes:
        return _idle(idle, f"accelerate starts {demand.processes} of {demand.gpus} processes; set num_processes")
    return None


def _idle(gpus: int, reason: str) -> str | None:
    return f"{_count(gpus)} of the lease will be idle: {reason}" if gpus > 0 else None


def _count(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"


def check_world(environ: Mapping[str, str], rank: int, size: int) -> None:
    """Check that accelerate sees the processes that the launcher has started.

    Otherwise several processes would each believe that they are the main one, and all would send pseudo-gradients.

    Raises:
        JobError: The views differ.
    """
    launched = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    if launched != (rank, size):
        raise JobError(
            f"the launcher started this process as number {launched[0]} of {launched[1]}, but accelerate takes it for "
            f"number {rank} of {size}; correct distributed_type and num_processes in the accelerate configuration"
        )


def check_sharding(environ: Mapping[str, str], *, sharded: bool) -> str | None:
    """Return a warning if the launcher was to shard the model and accelerate does not, because it trains on CPUs."""
    if environ.get("ACCELERATE_USE_FSDP", "false") == "true" and not sharded:
        return "accelerate does not shard on CPUs, so the processes train data parallel in spite of FSDP"
    return None


def check_installed(precision: str, compiler: str) -> None:
    """Check that the programs for a precision and for a backend of torch.compile are installed.

    Args:
        precision: accelerate's mixed precision, such as `bf16`.
        compiler: accelerate's dynamo backend, such as `INDUCTOR`.

    Raises:
        JobError: They are not.
    """
    if precision.lower() == "fp8" and not is_fp8_available():
        raise JobError(
            "mixed_precision is fp8, and this environment has no library for it; "
            "install torchao or Transformer Engine, or use bf16"
        )
    programs = (os.environ.get("CC", "cc"), os.environ.get("CXX", "g++"), "gcc", "clang")
    if compiler.upper() == "INDUCTOR" and not any(map(shutil.which, programs)):
        raise JobError(
            "dynamo_backend is INDUCTOR, and this environment has no C compiler; "
            "install gcc, or use dynamo_backend: 'NO'"
        )


def find_devices() -> Devices:
    """Ask PyTorch for the GPUs, and look for the reason if there is none."""
    version, cuda, hip = torch.__version__, torch.version.cuda, torch.version.hip
    if cuda or hip:
        names = tuple(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
        build = f"ROCm {hip}" if hip else f"CUDA {cuda}"
        return Devices(f"PyTorch {version} for {build}", names, "; ".join([_why_no_more(names), *_hidden(os.environ)]))
    if torch.backends.mps.is_built():
        names = ("Apple GPU",) if torch.backends.mps.is_available() else ()
        return Devices(f"PyTorch {version} for MPS", names, "this machine has one" if names else "macOS offers none")
    if torch.xpu.is_available():
        names = tuple(torch.xpu.get_device_name(number) for number in range(torch.xpu.device_count()))
        return Devices(f"PyTorch {version} for XPU", names, "the driver offers no more")
    return Devices(f"PyTorch {version}", (), "it is built for CPUs only")


_VISIBLE = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def _hidden(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that may hide GPUs."""
    return [f"{name} is {environ[name]!r}" for name in _VISIBLE if environ.get(name, "all") != "all"]


def _why_no_more(names: tuple[str, ...]) -> str:
    if names:
        return "the driver offers no more"
    return _why_no_rocm() if torch.version.hip else _why_no_cuda()


def _why_no_rocm(device: Path = Path("/dev/kfd")) -> str:
    if not device.exists():
        return f"there is no driver for AMD's GPUs ({device})"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"this user may not open {device}"
    return _initialise()


def _why_no_cuda(host_driver: Path = Path("/proc/driver/nvidia/version")) -> str:
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        host = ", although the kernel has one" if host_driver.exists() else ""
        return f"there is no NVIDIA driver (libcuda.so.1){host}"
    return judge_cuda_driver(version.value, str(torch.version.cuda)) or _initialise()


def judge_cuda_driver(newest: int, built: str) -> str | None:
    """Return why a driver cannot run a PyTorch, or None. `newest` is the driver's CUDA: 13040 for 13.4."""
    major, minor = newest // 1000, newest % 1000 // 10
    if major < int(built.partition(".")[0]):
        return f"the NVIDIA driver runs programs for CUDA {major}.{minor} and older"
    return None


def _initialise() -> str:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return "it has no GPU"
