"""Checks the machine: whether it has what the worker offers, and lets the node use it."""

import contextlib
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_contracts.units import BYTES_PER_GB, UNITS, exceeding, to_bytes
from hypha_messages.types import Resources
from hypha_worker.runtimes.process import limits, processes
from hypha_worker.runtimes.process.checks.gpus import Gpu

MIN_DESCRIPTORS: Final = 4096
"""A quarter of the descriptors are for connections with peers, and the node uses up to 1024 of these."""
_MIN_FREE_GB: Final = 1.0


@dataclass(frozen=True)
class Machine:
    """What this machine has for jobs: the machine itself, or the control group that contains this process."""

    resources: Resources
    disk_free_gb: float


def measure(work_dir: Path, gpus: tuple[Gpu, ...]) -> Machine:
    """Measure this machine. The storage is the free space of the work directory's disk and what jobs use already."""
    existing = next(path for path in (work_dir, *work_dir.absolute().parents) if os.access(path, os.F_OK))
    disk = os.statvfs(existing)
    free_bytes = disk.f_bavail * disk.f_frsize
    used_bytes = 0
    with contextlib.suppress(PermissionError):  # another check shows that this user may not see it
        used_bytes = sum(processes.directory_bytes(str(path)) for path in work_dir.glob("hypha-*"))
    quota = limits.find_quota()
    return Machine(
        Resources(
            cpu=min(len(os.sched_getaffinity(0)), quota.cpu),
            memory=min(psutil.virtual_memory().total, quota.memory_bytes) / BYTES_PER_GB,
            storage=(free_bytes + used_bytes) / BYTES_PER_GB,
            gpu=sum(gpu.memory_gb for gpu in gpus),
        ),
        free_bytes / BYTES_PER_GB,
    )


def judge_resources(offered: Resources, machine: Machine) -> Iterator[Finding]:
    """Yield a warning for each resource of which the worker offers more than the machine has."""
    excess = exceeding(offered, machine.resources)
    for name in excess:
        yield warning(
            f"[resources] {name}: the worker offers {getattr(offered, name):g} {UNITS[name]}, and this machine has "
            f"{getattr(machine.resources, name):.3g}" + (" free" if name == "storage" else ""),
            f"Lower {name} in [resources], or jobs may fail for lack of it.",
        )
    if not excess:
        amounts = ", ".join(f"{getattr(machine.resources, name):.3g} {unit}" for name, unit in UNITS.items())
        yield ok(f"this machine has {amounts}")


def judge_space(free_gb: float) -> Finding:
    """Return whether the disk of the work directory is full."""
    if free_gb < _MIN_FREE_GB:
        return failure(
            f"the disk of work_dir has {free_gb:.2g} GB left", "Remove files, or choose a work_dir on another disk."
        )
    return ok(f"the disk of work_dir has {free_gb:.3g} GB left")


def judge_descriptors(limit: int) -> Finding:
    """Return whether the node may have enough files and connections open."""
    if limit < MIN_DESCRIPTORS:
        return warning(
            f"this user may open {limit} files, which allows {limit // 4} connections with peers",
            f"Raise the limit to {MIN_DESCRIPTORS} or more: `ulimit -n`, or LimitNOFILE= in a systemd unit.",
        )
    return ok(f"this user may open {limit} files")


def judge_file_size(limit_bytes: int, offered: Resources) -> Finding:
    """Return whether a job may write a file as large as the storage that the worker offers."""
    if limit_bytes != resource.RLIM_INFINITY and limit_bytes < to_bytes(offered.storage):
        return warning(
            f"a file of this user may have {limit_bytes / BYTES_PER_GB:.3g} GB, less than the offered storage",
            "Raise the limit: `ulimit -f`, or LimitFSIZE= in a systemd unit.",
        )
    return ok("this user may write files as large as the offered storage")


def judge_limits(*, wanted: bool, usable: frozenset[str]) -> Finding:
    """Return whether control groups can limit jobs to their leases. `usable` are the controllers of this process."""
    if not wanted:
        return skipped("limits are switched off (jobs.limits = false)")
    if missing := [name for name in limits.CONTROLLERS if name not in usable]:
        return warning(
            f"control groups cannot limit the {', '.join(missing)} of jobs, so weaker limits or none take their place",
            "Under systemd, set Delegate=cpu memory pids and DelegateSubgroup=hypha-node. In a container, make "
            "/sys/fs/cgroup writable.",
        )
    return ok("control groups limit memory, CPU and processes of jobs")


def judge_platform(system: str, *, has_pidfd: bool) -> Finding:
    """Return whether the node runs on this operating system."""
    if system != "linux" or not has_pidfd:
        return failure(
            "the node runs on Linux 5.3 or newer only",
            "Run it there, or in a virtual machine or container.",
        )
    return ok(f"Linux {os.uname().release}")
