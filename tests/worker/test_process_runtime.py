"""The process runtime with real supervisors, bridges and executors."""

import json
from pathlib import Path

import pytest
import trio
import trio.testing

from hypha_contracts.bridge_config import LentToken
from hypha_worker.errors import NodeError
from hypha_worker.job import Failed, Finished, LaunchError, Started
from hypha_worker.runtimes.process.launch import ProcessConfig
from hypha_worker.runtimes.process.runtime import open_process_runtime
from support import jobs
from support.rig import PATIENCE_S, left_behind, open_rig, output_of

pytestmark = pytest.mark.anyio

SLEEP = "import time; print('ready', flush=True); time.sleep(600)"


async def test_a_job_whose_executor_ends_well_is_finished_and_leaves_nothing(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, "print('done')")) as rig:
        job = jobs.job()
        assert await rig.run(job) == Finished(job.task_id)
        assert rig.events == [Started(job.task_id), Finished(job.task_id)]
        assert left_behind(work_dir) == []


async def test_a_crash_is_reported_with_its_last_lines(work_dir: Path) -> None:
    crash = "print('line one'); raise RuntimeError('no such tensor')"
    async with open_rig(jobs.config(work_dir, crash)) as rig:
        failed = await rig.run(jobs.job())
        assert isinstance(failed, Failed)
        assert failed.reason == "the executor ended: exit code 1"
        assert failed.last_lines[0] == "line one"
        assert failed.last_lines[-1] == "RuntimeError: no such tensor"
        assert left_behind(work_dir) == []


async def test_the_executor_gets_its_arguments_and_environment(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    async with open_rig(jobs.config(work_dir, executor)) as rig:
        job = jobs.job(cpu=3)
        assert isinstance(await rig.run(job), Finished)
    seen = json.loads(report.read_text())
    its_dir = str(work_dir / f"hypha-{job.task_id}")
    assert seen["args"] == [f"{its_dir}/bridge.sock", its_dir, f"{its_dir}/job.json"]
    assert seen["cwd"] == seen["env"]["HOME"] == its_dir
    assert seen["modes"] == ["0o700", "0o600", "0o700"]
    assert json.loads(seen["job"]) == json.loads(seen["env"]["JOB_JSON"]) == job.spec.model_dump(mode="json")
    assert seen["env"]["HF_ENDPOINT"] == "http://hub"
    assert seen["env"]["OMP_NUM_THREADS"] == "3"
    assert seen["env"]["LEASE_GPUS"] == "0"
    assert "s3cret" not in str(seen["env"])


async def test_a_kept_model_is_in_the_owners_directory_and_the_log_says_where(
    work_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    keep = """
import json, os, sys
from pathlib import Path
job = json.loads(Path(sys.argv[3]).read_text())
Path(os.environ["OUTPUT_DIR"], job["job_id"]).mkdir(parents=True)
assert os.environ["OUTPUT_MAX_BYTES"] == "7000"
"""
    async with open_rig(jobs.config(work_dir, keep, output_dir=tmp_path / "models", output_max_bytes=7000)) as rig:
        job = jobs.job()
        assert await rig.run(job) == Finished(job.task_id)
    kept = tmp_path / "models" / str(job.spec.job_id)
    assert f"job {job.task_id}: its results are in {kept}" in caplog.text


def holders(directory: Path, text: bytes) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and text in path.read_bytes()]


async def test_a_lent_token_is_named_to_the_bridge_by_its_file(work_dir: Path) -> None:
    token = work_dir / "hub-token"
    token.write_text("hf_mine")
    lent = LentToken(file=token, repositories=frozenset({"digits/gated"}))
    async with open_rig(jobs.config(work_dir, SLEEP, hub_token=lent)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        control = work_dir / "jobs" / str(job.task_id)
        assert json.loads((control / "bridge.json").read_text())["hub_token"] == lent.model_dump(mode="json")
        assert holders(work_dir, b"hf_mine") == [token]
        await rig.runtime.terminate(job.task_id, "enough")
        await rig.end_of(job.task_id)


async def test_a_terminated_job_gets_sigterm_and_takes_its_descendants_along(work_dir: Path) -> None:
    executor = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told to end", flush=True), sys.exit(3)))
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
    async with open_rig(jobs.config(work_dir, executor)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        await rig.runtime.terminate(job.task_id, "its lease was not renewed")
        ended = await rig.end_of(job.task_id)
        assert isinstance(ended, Failed)
        assert ended.reason == "its lease was not renewed"
        assert ended.last_lines == ("ready", "told to end")
        assert left_behind(work_dir) == []


async def test_an_executor_that_ignores_sigterm_is_killed(work_dir: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    async with open_rig(jobs.config(work_dir, deaf, kill_after_s=0.2)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        await output_of(work_dir, job.task_id, "ready")
        await rig.runtime.terminate(job.task_id, "enough")
        assert await rig.end_of(job.task_id) == Failed(job.task_id, "enough", ("ready",))


async def test_a_job_terminated_while_it_is_launched_ends(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, SLEEP)) as rig:
        job = jobs.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.runtime.launch, job)
            await trio.testing.wait_all_tasks_blocked()
            await rig.runtime.terminate(job.task_id, "changed my mind")
        assert await rig.end_of(job.task_id) == Failed(job.task_id, "changed my mind")
        assert left_behind(work_dir) == []


async def test_the_bridge_finishes_its_sends_before_the_job_is_finished(work_dir: Path) -> None:
    marker = work_dir / "sent"
    slow = jobs.BRIDGE.replace("sys.exit(0)", f"(time.sleep(0.3), open({str(marker)!r}, 'w'), sys.exit(0))")
    async with open_rig(jobs.config(work_dir, "print('done')", slow)) as rig:
        job = jobs.job()
        assert await rig.run(job) == Finished(job.task_id)
        assert marker.exists()


async def test_a_bridge_that_cannot_finish_its_sends_is_logged(
    work_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = jobs.BRIDGE.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
    async with open_rig(jobs.config(work_dir, "print('done')", stuck, drain_s=0.1, kill_after_s=0.1)) as rig:
        assert isinstance(await rig.run(jobs.job()), Finished)
        assert left_behind(work_dir) == []
    assert "its bridge did not deliver all" in caplog.text


async def test_a_bridge_that_dies_fails_the_job_with_the_bridges_last_lines(work_dir: Path) -> None:
    dying = jobs.BRIDGE.replace(
        "while True:", "listener.accept(); print('out of cheese', flush=True); sys.exit(7)\nwhile 1:"
    )
    async with open_rig(jobs.config(work_dir, SLEEP, dying)) as rig:
        job = jobs.job()
        failed = await rig.run(job)
        assert isinstance(failed, Failed)
        assert "the bridge ended" in failed.reason
        assert "exit code 7" in failed.reason
        assert failed.last_lines == ("out of cheese",)


async def test_a_bridge_that_never_listens_fails_the_job(work_dir: Path) -> None:
    silent = "import time; time.sleep(600)"
    async with open_rig(jobs.config(work_dir, SLEEP, silent, start_s=0.3)) as rig:
        job = jobs.job()
        assert await rig.run(job) == Failed(job.task_id, "the bridge did not open its socket within 0.3 s")
        assert len(rig.events) == 1


async def test_a_command_that_does_not_exist_fails_the_job(work_dir: Path) -> None:
    config = jobs.config(work_dir, "")
    config.executors["train/test"].__dict__["args"] = ("/no/such/program",)
    async with open_rig(config) as rig:
        failed = await rig.run(jobs.job())
        assert isinstance(failed, Failed)
        assert "'/no/such/program' could not be started" in failed.reason


async def test_an_executor_that_is_not_configured_is_refused(work_dir: Path) -> None:
    config = jobs.config(work_dir, "")
    async with open_rig(ProcessConfig(work_dir, {}, config.bridge)) as rig:
        with pytest.raises(LaunchError, match="train/test"):
            await rig.runtime.launch(jobs.job())
        assert left_behind(work_dir) == []


async def test_the_same_task_twice_is_refused(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, SLEEP)) as rig:
        job = jobs.job()
        await rig.runtime.launch(job)
        with pytest.raises(LaunchError, match="exists already"):
            await rig.runtime.launch(job)


async def test_two_nodes_cannot_share_a_work_directory(work_dir: Path) -> None:
    config = jobs.config(work_dir, SLEEP)
    async with open_rig(config):
        with pytest.raises(NodeError, match="another node uses work_dir"):
            async with open_process_runtime(config):
                pass


async def test_output_is_bounded(work_dir: Path) -> None:
    chatty = "for i in range(20000): print(f'line {i:>100}')\nraise SystemExit(1)"
    async with open_process_runtime(jobs.config(work_dir, chatty, log_bytes=50_000)) as runtime:
        job = jobs.job()
        await runtime.launch(job)
        with trio.fail_after(PATIENCE_S):
            assert await anext(runtime.events) == Started(job.task_id)
            failed = await anext(runtime.events)
        assert isinstance(failed, Failed)
        assert failed.last_lines[-1].endswith(" 19999")
        logs = [path.stat().st_size for path in (work_dir / "jobs" / str(job.task_id)).glob("output.log*")]
        assert len(logs) == 2
        assert sum(logs) <= 2 * 50_000 + 64 * 1024
