"""The process runtime with real supervisors, bridges and executors."""

import json
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trio.testing
from support import jobs

from hypha_worker.runtime import Failed, Finished, Job, JobEvent, LaunchError, Started
from hypha_worker.runtimes import processes, supervisor
from hypha_worker.runtimes.control import ProcessConfig
from hypha_worker.runtimes.process import ProcessRuntime, open_process_runtime

pytestmark = pytest.mark.anyio

PATIENCE_S = 20
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def work_dir() -> Iterator[Path]:
    """Short enough for sockets' names, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="hypha-test-"))
    yield path
    for pid in processes.strays(str(path)):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)


@asynccontextmanager
async def open_runtime(config: ProcessConfig) -> AsyncIterator[ProcessRuntime]:
    with trio.fail_after(PATIENCE_S):
        async with open_process_runtime(config) as runtime:
            yield runtime


async def run_to_end(runtime: ProcessRuntime, job: Job) -> list[JobEvent]:
    await runtime.launch(job)
    return await events_to_end(runtime, job.task_id)


async def events_to_end(runtime: ProcessRuntime, task_id: UUID) -> list[JobEvent]:
    events: list[JobEvent] = []
    async for event in runtime.events:
        assert event.task_id == task_id
        events.append(event)
        if not isinstance(event, Started):
            await runtime.terminate(task_id, "wait until its record is removed")
            return events
    raise AssertionError("no end")


def left_behind(work_dir: Path) -> list[str]:
    pids = processes.strays(str(work_dir))
    return [str(path) for path in work_dir.glob("*") if path.name not in ("jobs", "node.lock")] + [
        *map(str, (work_dir / "jobs").glob("*")),
        *map(str, pids),
    ]


async def test_a_job_whose_executor_ends_well_is_finished_and_leaves_nothing(work_dir: Path) -> None:
    async with open_runtime(jobs.config(work_dir, "print('done')")) as runtime:
        job = jobs.job()
        assert await run_to_end(runtime, job) == [Started(job.task_id), Finished(job.task_id)]
        assert left_behind(work_dir) == []


async def test_a_crash_is_reported_with_its_last_lines(work_dir: Path) -> None:
    crash = "print('line one'); raise RuntimeError('no such tensor')"
    async with open_runtime(jobs.config(work_dir, crash)) as runtime:
        _, failed = await run_to_end(runtime, jobs.job())
        assert isinstance(failed, Failed)
        assert failed.reason == "the executor ended: exit code 1"
        assert failed.last_lines[0] == "line one"
        assert failed.last_lines[-1] == "RuntimeError: no such tensor"
        assert left_behind(work_dir) == []


async def test_what_the_executor_gets(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    report = work_dir / "report"
    executor = f"""
import json, os, sys
from pathlib import Path
stat = lambda p: oct(os.stat(p).st_mode & 0o777)
report = dict(args=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd(), job=Path(sys.argv[3]).read_text(),
    modes=[stat("."), stat("job.json"), stat("tmp")], tmp=__import__("tempfile").gettempdir())
Path({str(report)!r}).write_text(json.dumps(report))
"""
    async with open_runtime(jobs.config(work_dir, executor)) as runtime:
        job = jobs.job(cpu=3)
        assert isinstance((await run_to_end(runtime, job))[-1], Finished)
    seen = json.loads(report.read_text())
    its_dir = str(work_dir / f"hypha-{job.task_id}")
    assert seen["args"] == [f"{its_dir}/bridge.sock", its_dir, f"{its_dir}/job.json"]
    assert seen["cwd"] == seen["env"]["HOME"] == its_dir
    assert seen["modes"] == ["0o700", "0o600", "0o700"]
    assert json.loads(seen["job"]) == json.loads(seen["env"]["JOB_JSON"]) == job.spec.model_dump(mode="json")
    assert seen["env"]["HF_ENDPOINT"] == "http://hub"
    assert seen["env"]["OMP_NUM_THREADS"] == "3"
    assert "s3cret" not in str(seen["env"])


async def test_a_terminated_job_gets_sigterm_and_takes_its_descendants_along(work_dir: Path) -> None:
    executor = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told to end", flush=True), sys.exit(3)))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
    async with open_runtime(jobs.config(work_dir, executor)) as runtime:
        job = jobs.job()
        async with trio.open_nursery() as nursery:
            await runtime.launch(job)
            assert await runtime.events.receive() == Started(job.task_id)
            await output_of(work_dir, job, "ready")
            nursery.start_soon(runtime.terminate, job.task_id, "its lease was not renewed")
            ended = await runtime.events.receive()
        assert isinstance(ended, Failed)
        assert ended.reason == "its lease was not renewed"
        assert ended.last_lines == ("ready", "told to end")
        assert left_behind(work_dir) == []


async def test_an_executor_deaf_to_sigterm_is_killed(work_dir: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\ntime.sleep(600)"
    async with open_runtime(jobs.config(work_dir, deaf, kill_after_s=0.2)) as runtime, trio.open_nursery() as nursery:
        job = jobs.job()
        await runtime.launch(job)
        await runtime.events.receive()
        await output_of(work_dir, job, "ready")
        nursery.start_soon(runtime.terminate, job.task_id, "enough")
        assert await runtime.events.receive() == Failed(job.task_id, "enough", ("ready",))


async def test_a_job_terminated_while_it_is_launched_ends(work_dir: Path) -> None:
    async with open_runtime(jobs.config(work_dir, SLEEP)) as runtime:
        job = jobs.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtime.launch, job)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(runtime.terminate, job.task_id, "changed my mind")
            events = [event async for event in until_end(runtime)]
        assert events[-1] == Failed(job.task_id, "changed my mind")
        assert left_behind(work_dir) == []


async def test_the_bridge_finishes_its_sends_before_the_job_is_finished(work_dir: Path) -> None:
    marker = work_dir / "sent"
    slow = jobs.BRIDGE.replace("sys.exit(0)", f"(time.sleep(0.3), open({str(marker)!r}, 'w'), sys.exit(0))")
    async with open_runtime(jobs.config(work_dir, "print('done')", slow)) as runtime:
        job = jobs.job()
        assert (await run_to_end(runtime, job))[-1] == Finished(job.task_id)
        assert marker.exists()


async def test_a_bridge_that_dies_fails_the_job_with_the_bridges_last_lines(work_dir: Path) -> None:
    dying = jobs.BRIDGE.replace("while True:", "listener.accept(); print('out of cheese', flush=True); sys.exit(7)\nwhile 1:")
    async with open_runtime(jobs.config(work_dir, SLEEP, dying)) as runtime:
        job = jobs.job()
        failed = (await run_to_end(runtime, job))[-1]
        assert isinstance(failed, Failed)
        assert "the bridge ended" in failed.reason
        assert "exit code 7" in failed.reason
        assert failed.last_lines == ("out of cheese",)


async def test_a_bridge_that_never_listens_fails_the_job(work_dir: Path) -> None:
    silent = "import time; time.sleep(600)"
    async with open_runtime(jobs.config(work_dir, SLEEP, silent, start_s=0.3)) as runtime:
        job = jobs.job()
        assert await run_to_end(runtime, job) == [
            Failed(job.task_id, "the bridge did not open its socket within 0.3 s")
        ]


async def test_a_command_that_does_not_exist_fails_the_job(work_dir: Path) -> None:
    config = jobs.config(work_dir, "")
    config.executors["train/test"].__dict__["args"] = ("/no/such/program",)
    async with open_runtime(config) as runtime:
        (failed,) = await run_to_end(runtime, jobs.job())
        assert isinstance(failed, Failed)
        assert "'/no/such/program' could not be started" in failed.reason


async def test_an_executor_that_is_not_configured_is_refused(work_dir: Path) -> None:
    config = jobs.config(work_dir, "")
    async with open_runtime(ProcessConfig(work_dir, {}, config.bridge)) as runtime:
        with pytest.raises(LaunchError, match="train/test"):
            await runtime.launch(jobs.job())
        assert left_behind(work_dir) == []


async def test_the_same_task_twice_is_refused(work_dir: Path) -> None:
    async with open_runtime(jobs.config(work_dir, SLEEP)) as runtime:
        job = jobs.job()
        await runtime.launch(job)
        with pytest.raises(LaunchError, match="exists already"):
            await runtime.launch(job)


async def test_two_nodes_cannot_share_a_work_directory(work_dir: Path) -> None:
    config = jobs.config(work_dir, SLEEP)
    async with open_runtime(config):
        with pytest.raises(ValueError, match="another node uses work_dir"):
            async with open_process_runtime(config):
                pass


async def test_output_is_bounded(work_dir: Path) -> None:
    chatty = "for i in range(20000): print(f'line {i:>100}')\nraise SystemExit(1)"
    sizes = work_dir / "sizes"
    async with open_runtime(jobs.config(work_dir, chatty, log_bytes=50_000)) as runtime:
        job = jobs.job()
        control = work_dir / "jobs" / str(job.task_id)
        await runtime.launch(job)
        await runtime.events.receive()
        with trio.fail_after(PATIENCE_S):
            while not (control / supervisor.EXIT_FILE).exists():
                await trio.sleep(0.01)
        logs = [path.stat().st_size for path in control.glob("output.log*")]
        assert len(logs) == 2
        assert sum(logs) <= 2 * 50_000 + 64 * 1024
        failed = await runtime.events.receive()
        assert isinstance(failed, Failed)
        assert failed.last_lines[-1].endswith(" 19999")
    assert not sizes.exists()


async def output_of(work_dir: Path, job: Job, text: str) -> None:
    log = work_dir / "jobs" / str(job.task_id) / supervisor.OUTPUT_FILE
    while not log.exists() or text not in log.read_text():
        await trio.sleep(0.01)


async def until_end(runtime: ProcessRuntime) -> AsyncIterator[JobEvent]:
    async for event in runtime.events:
        yield event
        if not isinstance(event, Started):
            return
