"""Jobs that outlive their node: the node is a process of its own here, and is killed for real."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from hypha_worker import files
from hypha_worker.job import AdoptedJob, Failed, Finished, Job, LaunchError
from hypha_worker.runtimes.process import control, directories, limits, processes, supervised, supervisor
from hypha_worker.runtimes.process.control import ControlDirectories
from support import jobs
from support.rig import left_behind, open_rig, output_of

pytestmark = pytest.mark.anyio

WAITS = """
import pathlib, time
print("ready", flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.01)
"""

NODE = """
import sys
import trio
from pathlib import Path
from hypha_worker.runtimes.process.runtime import open_process_runtime
from support import jobs

async def main():
    async with open_process_runtime(jobs.config(Path(sys.argv[1]), sys.argv[2])) as runtime:
        adopted = await runtime.adopt()
        for _ in range(int(sys.argv[3])):
            await runtime.launch(jobs.job())
        print("launched", flush=True)
        async for event in runtime.events:
            print(event, flush=True)

trio.run(main)
"""


def start_node(work_dir: Path, executor: str, launches: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", NODE, str(work_dir), executor, str(launches)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def await_line(node: subprocess.Popen[str], text: str) -> None:
    assert node.stdout
    seen = []
    for line in node.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError("".join(seen))


def killed_node(work_dir: Path, executor: str) -> None:
    """A node that has started one job and was killed."""
    node = start_node(work_dir, executor)
    await_line(node, "Started(")
    node.kill()
    node.communicate()


def the_task(work_dir: Path) -> str:
    (control_dir,) = (work_dir / "jobs").iterdir()
    return control_dir.name


async def test_a_running_job_is_adopted_with_its_complete_record(work_dir: Path) -> None:
    killed_node(work_dir, WAITS)
    task = the_task(work_dir)
    record = json.loads((work_dir / "jobs" / task / "job.json").read_text())
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        (adopted,) = await rig.runtime.adopt()
        assert adopted.running
        assert str(adopted.job.task_id) == task
        assert await rig.runtime.authenticate(record["token"]) == adopted.job.task_id
        assert adopted.job.spec.model_dump(mode="json") == record["spec"]
        assert adopted.job.deadline == pytest.approx(time.time() + 60, abs=20)
        (work_dir / f"hypha-{task}" / "go").touch()
        assert await rig.end_of(adopted.job.task_id) == Finished(adopted.job.task_id)
        assert left_behind(work_dir) == []


async def test_jobs_are_adopted_in_the_order_in_which_they_were_launched(work_dir: Path) -> None:
    launched = [jobs.job() for _ in range(4)]
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        for job in launched:
            await rig.runtime.launch(job)
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        adopted = await rig.runtime.adopt()
        assert [found.job.task_id for found in adopted] == [job.task_id for job in launched]
        for job in launched:
            await rig.runtime.terminate(job.task_id, "enough")


async def test_an_adopted_job_can_be_extended_and_terminated(work_dir: Path) -> None:
    killed_node(work_dir, WAITS)
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        (adopted,) = await rig.runtime.adopt()
        task_id = adopted.job.task_id
        await output_of(work_dir, task_id, "ready")
        await rig.runtime.extend(task_id, 12345678901.5)
        assert (work_dir / "jobs" / str(task_id) / "deadline").read_text() == "12345678901.5"
        await rig.runtime.terminate(task_id, "enough")
        assert await rig.end_of(task_id) == Failed(task_id, "enough", ("ready",))
        assert left_behind(work_dir) == []


async def test_a_job_that_ended_without_a_node_is_reported(work_dir: Path) -> None:
    killed_node(work_dir, WAITS)
    task = the_task(work_dir)
    (work_dir / f"hypha-{task}" / "go").touch()
    await supervisor_gone(work_dir, task)
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        (adopted,) = await rig.runtime.adopt()
        assert not adopted.running
        assert await rig.end_of(adopted.job.task_id) == Finished(adopted.job.task_id)
        assert left_behind(work_dir) == []


async def test_a_job_whose_lease_expired_without_a_node_has_ended(work_dir: Path) -> None:
    killed_node(work_dir, WAITS)
    task = the_task(work_dir)
    await output_of(work_dir, task, "ready")
    files.replace_file(work_dir / "jobs" / task / "deadline", repr(time.time()))
    await supervisor_gone(work_dir, task)
    assert processes.strays(str(work_dir)) == set()
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        (adopted,) = await rig.runtime.adopt()
        reason = "the lease expired while the node was gone"
        assert await rig.end_of(adopted.job.task_id) == Failed(adopted.job.task_id, reason, ("ready",))
        assert left_behind(work_dir) == []


async def test_a_job_whose_supervisor_was_killed_with_the_node_is_removed(work_dir: Path) -> None:
    orphan = """
    import subprocess, sys, time
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print("ready", flush=True)
    time.sleep(600)
    """
    killed_node(work_dir, textwrap.dedent(orphan))
    task = the_task(work_dir)
    await output_of(work_dir, task, "ready")
    os.kill(int((work_dir / "jobs" / task / "supervisor.pid").read_text()), signal.SIGKILL)
    await supervisor_gone(work_dir, task)
    assert processes.strays(str(work_dir)) != set()  # the orphan
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        (adopted,) = await rig.runtime.adopt()
        ended = await rig.end_of(adopted.job.task_id)
        assert ended == Failed(adopted.job.task_id, "its supervisor was killed")
        assert left_behind(work_dir) == []


async def test_a_supervisor_killed_under_a_living_node_fails_the_job(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await rig.started(job.task_id)
        os.kill(int((work_dir / "jobs" / str(job.task_id) / "supervisor.pid").read_text()), signal.SIGKILL)
        assert await rig.end_of(job.task_id) == Failed(job.task_id, "its supervisor was killed")
        assert left_behind(work_dir) == []


async def test_a_process_that_reuses_the_id_of_a_dead_supervisor_is_not_killed(work_dir: Path) -> None:
    bystander = subprocess.Popen(["sleep", "600"])  # noqa: ASYNC220
    try:
        job = interrupted_launch(work_dir, after="write plan.json")
        (work_dir / "jobs" / str(job.task_id) / "supervisor.pid").write_text(str(bystander.pid))
        async with open_rig(jobs.config(work_dir, WAITS)) as rig:
            assert await rig.runtime.adopt() == [AdoptedJob(job, running=False)]
            assert isinstance(await rig.end_of(job.task_id), Failed)
            await rig.runtime.terminate(job.task_id, "enough")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


class Killed(BaseException):
    """Stands for the node's end between two steps."""


STEPS = [
    "mkdir control",
    "write deadline",
    "write job.json",
    "mkdir group",
    "mkdir work",
    "write the executor's job.json",
    "write token",
    "write bridge.json",
    "write plan.json",
]


def interrupted_launch(work_dir: Path, after: str) -> Job:
    """Launch a job with a node that is killed after one of the steps of a launch; nothing is cleaned up."""
    job = jobs.job(memory=1)
    directories = ControlDirectories(jobs.config(work_dir, "print('done')"))
    make_directory = Path.mkdir

    def write(path: Path, text: str, *, durable: bool = True) -> None:
        files.replace_file(path, text, durable=durable)
        if after == f"write {path.name}" or (after == "write the executor's job.json" and path == work / "job.json"):
            raise Killed

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make_directory(path, mode, parents, exist_ok)
        if path == {"mkdir control": control_dir, "mkdir work": work}.get(after) or (
            after == "mkdir group" and path.is_relative_to("/sys/fs/cgroup")
        ):
            raise Killed

    control_dir, work = work_dir / "jobs" / str(job.task_id), work_dir / f"hypha-{job.task_id}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "replace_file", write)
        patch.setattr(Path, "mkdir", mkdir)
        with pytest.raises(Killed):
            directories.launch(job, "token")
    return job


@pytest.mark.parametrize("step", STEPS)
async def test_a_launch_interrupted_at_any_step_is_completed_or_undone(work_dir: Path, step: str) -> None:
    if step == "mkdir group" and not limits.find_hierarchies():
        pytest.skip("this host gives us no control groups")
    job = interrupted_launch(work_dir, step)
    recorded = STEPS.index(step) >= STEPS.index("write job.json")
    async with open_rig(jobs.config(work_dir, "print('done')")) as rig:
        assert await rig.runtime.adopt() == ([AdoptedJob(job, running=True)] if recorded else [])
        if recorded:
            assert await rig.end_of(job.task_id) == Finished(job.task_id)
        assert left_behind(work_dir) == []


async def test_an_interrupted_launch_whose_lease_expired_is_undone(work_dir: Path) -> None:
    job = interrupted_launch(work_dir, "write token")
    files.replace_file(work_dir / "jobs" / str(job.task_id) / "deadline", repr(time.time() - 1))
    async with open_rig(jobs.config(work_dir, "print('done')")) as rig:
        await rig.runtime.adopt()
        assert await rig.end_of(job.task_id) == Failed(job.task_id, "its supervisor could not be started")
        assert left_behind(work_dir) == []


async def test_an_end_that_was_not_recorded_is_reported_again(work_dir: Path) -> None:
    killed_node(work_dir, WAITS)
    task = the_task(work_dir)
    (work_dir / f"hypha-{task}" / "go").touch()
    await supervisor_gone(work_dir, task)
    directories = ControlDirectories(jobs.config(work_dir, WAITS))
    (found,) = directories.adopt()
    job = found.job
    assert directories.conclude(job.task_id) == Finished(job.task_id)  # and here that node is killed
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        assert await rig.runtime.adopt() == [AdoptedJob(job, running=False)]
        assert await rig.end_of(job.task_id) == Finished(job.task_id)
        assert left_behind(work_dir) == []


async def test_directories_of_the_node_without_a_job_are_removed(work_dir: Path) -> None:
    stray = work_dir / f"hypha-{uuid4()}"
    (stray / "deep").mkdir(parents=True)
    torn, unmarked = (work_dir / "jobs" / str(uuid4()) for _ in range(2))
    torn.mkdir(parents=True)
    (torn / "job.json").write_text('{"task_id": ')
    for directory in (stray, torn):
        (directory / directories._MARKER).touch()
    unmarked.mkdir()
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        assert await rig.runtime.adopt() == []
        assert left_behind(work_dir) == []


def contents(work_dir: Path) -> dict[str, str]:
    return {str(path): path.read_text() if path.is_file() else "" for path in work_dir.rglob("*")}


def make_files_of_the_owner(work_dir: Path) -> None:
    """Make files of the owner whose names resemble the node's."""
    files = {
        "hypha-datasets/digits.safetensors": "data",
        "hypha-key.pem": "key",
        f"hypha-{uuid4()}/notes.txt": "results of an earlier job, copied",
        f"hypha-{str(uuid4()).upper()}/notes.txt": "another spelling",
        f"hypha-{uuid4().hex}/notes.txt": "yet another",
        f"jobs/{uuid4()}/notes.txt": "mine",
        "jobs/plans/monday.txt": "mine",
        "jobs/readme": "mine",
        "node.lock": "mine",
        "elsewhere/precious": "behind a link",
    }
    for name, text in files.items():
        (work_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (work_dir / name).write_text(text)
    (work_dir / f"hypha-{uuid4()}").symlink_to(work_dir / "elsewhere")


async def test_the_owners_files_survive_a_start(work_dir: Path) -> None:
    make_files_of_the_owner(work_dir)
    before = contents(work_dir)
    async with open_rig(jobs.config(work_dir, "print('done')", keep_ended_s=0)) as rig:
        assert await rig.runtime.adopt() == []
        assert await rig.run(job := jobs.job()) == Finished(job.task_id)
    assert contents(work_dir) == before


async def test_a_job_whose_directory_belongs_to_the_owner_is_refused_and_the_directory_kept(work_dir: Path) -> None:
    job = jobs.job()
    directory = work_dir / f"hypha-{job.task_id}"
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("mine")
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        with pytest.raises(LaunchError, match="exists already"):
            await rig.runtime.launch(job)
        assert (directory / "notes.txt").read_text() == "mine"
        assert list((work_dir / "jobs").iterdir()) == []


async def test_a_job_that_removed_the_nodes_marker_is_removed(work_dir: Path) -> None:
    remover = """
    import os, sys
    os.unlink(os.path.join(sys.argv[2], ".hypha-worker"))
    open(os.path.join(sys.argv[2], "result"), "w").close()
    """
    async with open_rig(jobs.config(work_dir, textwrap.dedent(remover))) as rig:
        assert await rig.run(job := jobs.job()) == Finished(job.task_id)
        assert left_behind(work_dir) == []


@pytest.mark.parametrize("seed", range(5))
async def test_a_node_killed_at_random_moments_loses_no_job_and_leaves_nothing(work_dir: Path, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        node = start_node(work_dir, WAITS, launches=1)
        await_line(node, "launched")
        await trio.sleep(chance.uniform(0, 0.3))
        node.kill()
        node.communicate()
    async with open_rig(jobs.config(work_dir, WAITS)) as rig:
        adopted = await rig.runtime.adopt()
        assert [job.running for job in adopted] == [True, True, True]
        for found in adopted:
            (work_dir / f"hypha-{found.job.task_id}" / "go").touch()
        for found in adopted:
            assert await rig.end_of(found.job.task_id) == Finished(found.job.task_id)
        assert left_behind(work_dir) == []


async def supervisor_gone(work_dir: Path, task: str) -> None:
    with trio.fail_after(20):
        while supervised.is_locked(work_dir / "jobs" / task / supervisor.LOCK_FILE):  # noqa: ASYNC110
            await trio.sleep(0.01)
