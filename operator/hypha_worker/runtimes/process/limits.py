"""Limits a job to its lease, by control groups (version 2 or 1) if the host permits them, else by resource limits.

`plan_limits` decides from the result of `find_hierarchies`. `create_groups` and `remove_groups` act. Only the executor
and its descendants are in the groups, so that the bridge and the supervisor survive an executor that exceeds them.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal
from uuid import UUID

from hypha_contracts.units import to_bytes
from hypha_messages.types import Resources
from hypha_network.rate_limited_log import RateLimitedLogger

logger = logging.getLogger(__name__)
_removal_log = RateLimitedLogger(logger)

_NODE_GROUP: Final = "hypha-node"
_CPU_PERIOD_US: Final = 100_000
_MAX_TASKS: Final = 16_384
_REMOVE_FOR_S: Final = 2.0

Controller = Literal["memory", "cpu", "pids"]
CONTROLLERS: Final[tuple[Controller, ...]] = ("memory", "cpu", "pids")


@dataclass(frozen=True)
class Hierarchy:
    """A directory of the control group file system in which the node can make groups for jobs."""

    version: Literal[1, 2]
    base: Path
    controllers: frozenset[str]

    def group(self, name: str) -> Path:
        """Return the directory of a job's group. `name` is the task id."""
        return self.base / f"hypha-{name}"


@dataclass(frozen=True)
class Group:
    """A control group of one job: its directory and the settings of its files, in this order."""

    path: Path
    settings: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Limits:
    """The limits of one job.

    Attributes:
        groups: control groups to make.
        rlimits: resource limits by their names in the module `resource`.
        oom_counter: the file that counts the processes that the kernel killed for memory.
        storage_bytes: maximum size of the job's directories. None if the owner has switched limits off.
        threads: number of threads for numerical libraries. None if the owner has switched limits off.
        unlimited: the resources that this host cannot limit.
    """

    groups: tuple[Group, ...] = ()
    rlimits: Mapping[str, int] = field(default_factory=dict)
    oom_counter: Path | None = None
    storage_bytes: int | None = None
    threads: int | None = None
    unlimited: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{group.path} ({', '.join(f'{k}={v}' for k, v in group.settings)})" for group in self.groups]
        parts += [f"{name}={value}" for name, value in self.rlimits.items()]
        return ", ".join(parts) or "none"


def plan_limits(resources: Resources, task_id: UUID, hierarchies: tuple[Hierarchy, ...]) -> Limits:
    """Decide the limits of a job. There is one for every resource, also if the lease has none of it."""
    memory_bytes = to_bytes(resources.memory)
    storage_bytes = to_bytes(resources.storage)
    groups = []
    limited: set[str] = set()
    oom_counter = None
    for hierarchy in hierarchies:
        usable = frozenset(hierarchy.controllers - limited)
        settings = _settings(hierarchy.version, usable, memory_bytes, resources.cpu)
        if settings:
            path = hierarchy.group(str(task_id))
            groups.append(Group(path, settings))
            if "memory" in usable:
                oom_counter = path / ("memory.events" if hierarchy.version == 2 else "memory.oom_control")
        limited |= usable
    rlimits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": storage_bytes}
    unlimited = []
    if "memory" not in limited:
        if resources.gpu:
            # A GPU's driver maps far more than it uses, so RLIMIT_DATA would stop normal jobs.
            unlimited.append("memory")
        else:
            rlimits["RLIMIT_DATA"] = memory_bytes
    if "cpu" not in limited:
        unlimited.append("CPU")
    return Limits(
        groups=tuple(groups),
        rlimits=rlimits,
        oom_counter=oom_counter,
        storage_bytes=storage_bytes,
        threads=max(1, math.floor(resources.cpu)),
        unlimited=tuple(unlimited),
    )


def _settings(
    version: Literal[1, 2], controllers: frozenset[str], memory_bytes: int, cpu: float
) -> tuple[tuple[str, str], ...]:
    quota_us = max(1000, round(cpu * _CPU_PERIOD_US))
    settings: list[tuple[str, str]] = []
    if "memory" in controllers:
        if version == 2:
            settings += [("memory.max", str(memory_bytes)), ("memory.swap.max", "0"), ("memory.oom.group", "1")]
        else:
            settings += [("memory.limit_in_bytes", str(memory_bytes))]
            settings += [("memory.memsw.limit_in_bytes", str(memory_bytes))]
    if "cpu" in controllers:
        if version == 2:
            settings += [("cpu.max", f"{quota_us} {_CPU_PERIOD_US}")]
        else:
            settings += [("cpu.cfs_period_us", str(_CPU_PERIOD_US)), ("cpu.cfs_quota_us", str(quota_us))]
    if "pids" in controllers:
        settings += [("pids.max", str(_MAX_TASKS))]
    return tuple(settings)


_OPTIONAL: Final = frozenset({"memory.swap.max", "memory.oom.group", "memory.memsw.limit_in_bytes"})
"""Settings that a kernel may lack."""


def create_groups(groups: tuple[Group, ...]) -> None:
    """Make the groups. OSError if one cannot be made, in which case none of them is left."""
    try:
        for group in groups:
            group.path.mkdir(exist_ok=True)
            for name, value in group.settings:
                try:
                    (group.path / name).write_text(value)
                except OSError as error:
                    if name not in _OPTIONAL:
                        raise OSError(error.errno, f"{error.strerror}, writing {value!r}", error.filename) from error
    except OSError:
        remove_groups([group.path for group in groups])
        raise


def remove_groups(paths: list[Path]) -> None:
    """Remove groups whose processes have ended. Missing groups are ignored."""
    until = time.monotonic() + _REMOVE_FOR_S
    for path in paths:
        while path.exists():
            try:
                path.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:  # busy until the kernel has released its last process
                if time.monotonic() > until:
                    _removal_log.warning(str(path), "this control group cannot be removed: %s", error)
                    break
                time.sleep(0.01)


def find_hierarchies(proc: Path = Path("/proc/self")) -> tuple[Hierarchy, ...]:
    """Return the hierarchies in which this process may make groups, and log why it cannot use the others."""
    try:
        own = _own_directories(proc)
    except OSError as error:
        logger.warning("control groups cannot be used: %s", error)
        return ()
    found = []
    for controllers, base in own:
        wanted = frozenset(CONTROLLERS) & controllers if controllers else frozenset(CONTROLLERS)
        if not wanted:
            continue
        try:
            if controllers:
                _probe(base)
            hierarchy = Hierarchy(1, base, wanted) if controllers else _open_v2(base)
        except OSError as error:
            logger.info("no control groups for jobs below %s: %s", base, error)
            continue
        if hierarchy.controllers:
            found.append(hierarchy)
    return tuple(found)


def usable_controllers(proc: Path = Path("/proc/self")) -> frozenset[str]:
    """Return the controllers by which a process may limit jobs. Unlike `find_hierarchies`, it changes nothing."""
    usable: set[str] = set()
    with contextlib.suppress(OSError):
        for controllers, base in _own_directories(proc):
            if controllers:
                usable |= controllers if os.access(base, os.W_OK) else set()
            else:
                parent = base.parent if base.name == _NODE_GROUP else base
                if os.access(parent, os.W_OK) and os.access(parent / "cgroup.subtree_control", os.W_OK):
                    usable.update((parent / "cgroup.controllers").read_text().split())
    return frozenset(CONTROLLERS) & usable


@dataclass(frozen=True)
class Quota:
    """What the control groups above a process leave to it. Infinite without a limit."""

    cpu: float
    memory_bytes: float


def find_quota(proc: Path = Path("/proc/self")) -> Quota:
    """Return the smallest limits of the control groups that contain a process."""
    cpus, memories = [math.inf], [math.inf]
    with contextlib.suppress(OSError):
        for _, base in _own_directories(proc):
            for group in (base, *base.parents):
                cpus += _ratios(_words(group / "cpu.max"))
                cpus += _ratios([*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")])
                for name in ("memory.max", "memory.limit_in_bytes"):
                    memories += [int(word) for word in _words(group / name) if word.isdigit()]
    return Quota(min(cpus), min(memories))


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # the group has no such limit
        return []


def _ratios(words: list[str]) -> list[float]:
    """Return quota by period, or nothing if the quota is `max` or -1."""
    return [int(words[0]) / int(words[1])] if len(words) == 2 and words[0].isdigit() else []


def _own_directories(proc: Path) -> list[tuple[frozenset[str], Path]]:
    """Return the directories of a process's groups with their controllers. Version 2 has the empty set. OSError."""
    mounts = parse_mounts((proc / "mountinfo").read_text())
    found = []
    for controllers, path in parse_own_groups((proc / "cgroup").read_text()).items():
        bases = (b for names, root, point in mounts if names == controllers and (b := _below(path, root, point)))
        if (base := next(bases, None)) is not None:
            found.append((controllers, base))
    return found


def parse_own_groups(text: str) -> dict[frozenset[str], str]:
    """Return this process's group by controllers, from `/proc/self/cgroup`. Version 2 has the empty set."""
    groups = {}
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or not controllers.startswith("name="):
            groups[frozenset(filter(None, controllers.split(",")))] = path
    return groups


def parse_mounts(text: str) -> list[tuple[frozenset[str], str, Path]]:
    """Return controllers, root and mount point of each control group mount, from `/proc/self/mountinfo`."""
    mounts = []
    known = {"cpu", "cpuacct", "memory", "pids", "cpuset", "blkio", "devices", "freezer", "net_cls", "net_prio"}
    known |= {"perf_event", "hugetlb", "rdma", "misc"}
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        root, point = fields.split(" ")[3:5]
        if kind == "cgroup2":
            mounts.append((frozenset[str](), root, Path(point)))
        elif kind == "cgroup" and (controllers := frozenset(options.split(",")) & known):
            mounts.append((controllers, root, Path(point)))
    return mounts


def _below(path: str, root: str, point: Path) -> Path | None:
    """Return the directory of a group, or None if this mount does not contain it."""
    if ".." in path.split("/"):
        return None
    if root == "/":
        return point / path.lstrip("/")
    if path == root or path.startswith(root + "/"):
        return point / path[len(root) :].lstrip("/")
    return None


def _open_v2(base: Path) -> Hierarchy:
    """Enable the controllers below the group of this process. The kernel requires that it then holds no processes."""
    if base.name == _NODE_GROUP:
        base = base.parent
    wanted = frozenset(CONTROLLERS) & frozenset((base / "cgroup.controllers").read_text().split())
    enabled = frozenset((base / "cgroup.subtree_control").read_text().split())
    if not wanted:
        return Hierarchy(2, base, wanted)
    if wanted - enabled:
        _probe(base)
        if (base / "cgroup.type").exists():  # not the host's root group
            node_group = base / _NODE_GROUP
            node_group.mkdir(exist_ok=True)
            for pid in (base / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    (node_group / "cgroup.procs").write_text(pid)
        (base / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(wanted)))
    _probe(base)
    return Hierarchy(2, base, wanted)


def _probe(base: Path) -> None:
    """Check that this process may make groups. OSError if it may not."""
    probe = base / f"hypha-probe-{os.getpid()}"
    probe.mkdir()
    probe.rmdir()
