"""Limits: what is planned for which host, and that the kernel really holds an executor to it."""

import os
import time
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages.types import Resources
from hypha_worker.job import Failed, Finished
from hypha_worker.runtimes.process import limits, supervisor
from hypha_worker.runtimes.process.limits import Hierarchy, plan_limits
from support import jobs
from support.rig import left_behind, open_rig

TASK = UUID(int=7)
V2 = Hierarchy(2, Path("/cg/node"), frozenset({"memory", "cpu", "pids"}))
LITTLE = Resources(cpu=1, memory=1, storage=1)
V1 = tuple(Hierarchy(1, Path("/cg", name), frozenset({name})) for name in ("memory", "cpu", "pids"))


def usable(controller: str) -> bool:
    return any(controller in hierarchy.controllers for hierarchy in limits.find_hierarchies())


def test_version_2_has_one_group_for_all() -> None:
    planned = plan_limits(Resources(cpu=1.5, memory=2, storage=3), TASK, (V2,))
    (group,) = planned.groups
    assert group.path == Path(f"/cg/node/hypha-{TASK}")
    assert dict(group.settings) == {
        "memory.max": "2000000000",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "pids.max": "16384",
    }
    assert planned.oom_counter == group.path / "memory.events"
    assert planned.rlimits == {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 3_000_000_000}
    assert (planned.storage_bytes, planned.threads, planned.unlimited) == (3_000_000_000, 1, ())


def test_version_1_has_a_group_for_each_controller() -> None:
    planned = plan_limits(Resources(cpu=2, memory=1), TASK, V1)
    settings = {group.path.parent.name: dict(group.settings) for group in planned.groups}
    assert settings == {
        "memory": {"memory.limit_in_bytes": "1000000000", "memory.memsw.limit_in_bytes": "1000000000"},
        "cpu": {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "200000"},
        "pids": {"pids.max": "16384"},
    }
    assert planned.oom_counter == Path(f"/cg/memory/hypha-{TASK}/memory.oom_control")


def test_a_controller_is_used_once_where_both_versions_have_it() -> None:
    planned = plan_limits(Resources(cpu=2, memory=1), TASK, (V2, *V1))
    assert [group.path.parent for group in planned.groups] == [Path("/cg/node")]


def test_without_control_groups_memory_is_limited_by_process_and_cpu_is_not() -> None:
    planned = plan_limits(Resources(cpu=2, memory=1), TASK, ())
    assert planned.rlimits["RLIMIT_DATA"] == 1_000_000_000
    assert planned.unlimited == ("CPU",)


def test_without_control_groups_a_gpu_job_has_no_memory_limit() -> None:
    planned = plan_limits(Resources(cpu=2, memory=1, gpu=8), TASK, ())
    assert "RLIMIT_DATA" not in planned.rlimits
    assert planned.unlimited == ("memory", "CPU")


@pytest.mark.parametrize("hierarchies", [(), (V2,), V1])
def test_a_lease_without_any_resources_is_limited_in_all_of_them(hierarchies: tuple[Hierarchy, ...]) -> None:
    nothing, little = (plan_limits(resources, TASK, hierarchies) for resources in (Resources(), LITTLE))
    assert nothing.rlimits.keys() == little.rlimits.keys()
    assert [group.path for group in nothing.groups] == [group.path for group in little.groups]
    assert [[name for name, _ in group.settings] for group in nothing.groups] == [
        [name for name, _ in group.settings] for group in little.groups
    ]
    assert (nothing.storage_bytes, nothing.threads, nothing.unlimited) == (1, 1, little.unlimited)


amounts = st.floats(0, 1e6, allow_nan=False)


resources = st.builds(Resources, gpu=amounts, cpu=amounts, memory=amounts, storage=amounts)


@given(resources, st.sampled_from([(), (V2,), V1]))
def test_the_kernel_accepts_every_limit(resources: Resources, hierarchies: tuple[Hierarchy, ...]) -> None:
    planned = plan_limits(resources, TASK, hierarchies)
    texts = [text for group in planned.groups for name, text in group.settings if name not in limits._OPTIONAL]
    numbers = [int(number) for text in texts for number in text.split()]
    numbers += [limit for name, limit in planned.rlimits.items() if name != "RLIMIT_CORE"]
    assert all(0 < number < 2**63 for number in numbers)


OWN_V1 = "9:name=systemd:/\n5:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n"
MOUNTS = """\
30 20 0:25 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
31 20 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 20 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
33 20 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 20 0:29 / /proc rw - proc proc rw
"""


def test_own_groups_are_read() -> None:
    assert limits.parse_own_groups(OWN_V1) == {
        frozenset({"memory"}): "/a/b",
        frozenset({"cpu", "cpuacct"}): "/",
        frozenset(): "/",
    }


def test_mounts_are_read() -> None:
    assert limits.parse_mounts(MOUNTS) == [
        (frozenset({"memory"}), "/", Path("/sys/fs/cgroup/memory")),
        (frozenset({"cpu", "cpuacct"}), "/", Path("/sys/fs/cgroup/cpu,cpuacct")),
        (frozenset(), "/", Path("/sys/fs/cgroup/unified")),
    ]


@pytest.mark.parametrize(
    ("own", "root", "base"),
    [("/job", "/", "job"), ("/docker/1/job", "/docker/1", "job"), ("/", "/", ""), ("/../other", "/", None)],
)
def test_the_own_group_is_found_in_the_file_system(tmp_path: Path, own: str, root: str, base: str | None) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "memory"
    proc.mkdir()
    (mount / "job").mkdir(parents=True)
    (proc / "cgroup").write_text(f"4:memory:{own}\n")
    (proc / "mountinfo").write_text(f"30 20 0:25 {root} {mount} rw - cgroup cgroup rw,memory\n")
    found = limits.find_hierarchies(proc)
    assert [hierarchy.base for hierarchy in found] == ([] if base is None else [mount / base])


def version_2_tree(tmp_path: Path, enabled: str) -> Path:
    """A directory like a delegated group of version 2, and the `proc` of a process in it."""
    proc, mount = tmp_path / "proc", tmp_path / "cgroup"
    (mount / "service").mkdir(parents=True)
    proc.mkdir()
    (proc / "cgroup").write_text("0::/service\n")
    (proc / "mountinfo").write_text(f"30 20 0:25 / {mount} rw - cgroup2 cgroup2 rw\n")
    for name, text in {
        "cgroup.controllers": "cpuset cpu io memory pids",
        "cgroup.subtree_control": enabled,
        "cgroup.type": "domain",
        "cgroup.procs": "41\n42\n",
    }.items():
        (mount / "service" / name).write_text(text)
    return proc


def test_a_delegated_group_is_emptied_and_its_controllers_are_enabled(tmp_path: Path) -> None:
    found = limits.find_hierarchies(version_2_tree(tmp_path, ""))
    service = tmp_path / "cgroup" / "service"
    assert found == (Hierarchy(2, service, frozenset({"memory", "cpu", "pids"})),)
    assert (service / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (service / "hypha-node" / "cgroup.procs").read_text() == "42"  # a real one keeps all that are written


def test_a_group_that_was_set_up_before_is_used_as_it_is(tmp_path: Path) -> None:
    proc = version_2_tree(tmp_path, "cpu memory pids")
    (proc / "cgroup").write_text("0::/service/hypha-node\n")
    found = limits.find_hierarchies(proc)
    assert [hierarchy.base for hierarchy in found] == [tmp_path / "cgroup" / "service"]
    assert not (tmp_path / "cgroup" / "service" / "hypha-node").exists()


def test_no_control_groups_is_no_error(tmp_path: Path) -> None:
    assert limits.find_hierarchies(tmp_path) == ()


def test_a_failed_creation_of_groups_leaves_nothing(tmp_path: Path) -> None:
    good = limits.Group(tmp_path / "good", ())
    bad = limits.Group(tmp_path / "bad", (("no/such/file", "1"),))
    with pytest.raises(OSError, match="writing '1'"):
        limits.create_groups((good, bad))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
@pytest.mark.skipif(not usable("memory"), reason="this host gives us no memory control group")
async def test_an_executor_that_takes_too_much_memory_is_killed_and_the_bridge_is_not(work_dir: Path) -> None:
    hungry = "pieces = []\nwhile True: pieces.append(bytearray(b'x') * 10_000_000)"
    async with open_rig(jobs.config(work_dir, hungry)) as rig:
        failed = await rig.run(jobs.job(memory=0.2))
        assert isinstance(failed, Failed)
        assert "the executor ended: SIGKILL" in failed.reason
        assert "for using more memory than the job was given" in failed.reason
        assert left_behind(work_dir) == []


@pytest.mark.anyio
@pytest.mark.skipif(not usable("cpu"), reason="this host gives us no CPU control group")
async def test_an_executor_gets_no_more_cpu_than_its_lease(work_dir: Path) -> None:
    used = work_dir / "used"
    busy = f"""
import time
start = time.monotonic()
while time.monotonic() < start + 1: pass
open({str(used)!r}, "w").write(str(time.process_time()))
"""
    async with open_rig(jobs.config(work_dir, busy)) as rig:
        assert isinstance(await rig.run(jobs.job(cpu=0.25)), Finished)
    assert float(used.read_text()) < 0.6


@pytest.mark.anyio
async def test_without_control_groups_memory_is_still_limited(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "find_hierarchies", lambda: ())
    async with open_rig(jobs.config(work_dir, "bytearray(400_000_000)")) as rig:
        failed = await rig.run(jobs.job(memory=0.3))
        assert isinstance(failed, Failed)
        assert failed.last_lines[-1] == "MemoryError"


@pytest.mark.anyio
async def test_groups_that_fail_at_launch_leave_the_job_with_resource_limits(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "find_hierarchies", lambda: (Hierarchy(2, work_dir / "gone", frozenset({"memory"})),))
    async with open_rig(jobs.config(work_dir, "bytearray(400_000_000)")) as rig:
        failed = await rig.run(jobs.job(memory=0.3, cpu=1))
        assert isinstance(failed, Failed)
        assert failed.last_lines[-1] == "MemoryError"
    assert "no control groups for it" in caplog.text
    assert "this host cannot limit its CPU" in caplog.text


@pytest.mark.anyio
async def test_a_file_larger_than_the_jobs_storage_cannot_be_written(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, "open('big', 'wb').write(bytes(20_000_000))")) as rig:
        failed = await rig.run(jobs.job(storage=0.01))
        assert isinstance(failed, Failed)
        assert "File too large" in failed.last_lines[-1]


def test_many_small_files_count_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STORAGE_SCAN_EVERY_S", 0)
    limit = supervisor.StorageLimit([str(tmp_path)], 100_000)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for i in range(10):
        (tmp_path / "a" / "b" / str(i)).write_bytes(b"x" * 8192)
    assert not limit.exceeded()
    for i in range(10, 20):
        (tmp_path / "a" / str(i)).write_bytes(b"x" * 8192)
    time.sleep(0.05)
    assert limit.exceeded()


def test_a_tree_too_deep_for_a_path_exceeds_the_storage_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_STORAGE_SCAN_EVERY_S", 0)
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("d" * 250, dir_fd=here)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    assert supervisor.StorageLimit([str(tmp_path)], 2**40).exceeded()
