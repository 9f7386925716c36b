"""The logs of ended jobs outlive the jobs' directories, within their bounds."""

import json
import os
from pathlib import Path
from uuid import uuid4

import pytest

from hypha_worker.job import Failed, Finished
from hypha_worker.runtimes.process.control import ControlDirectories
from hypha_worker.runtimes.process.ended_logs import MAX_JOBS, EndedLogs
from support import jobs
from support.rig import left_behind, open_rig

pytestmark = pytest.mark.anyio


async def test_the_logs_of_a_failed_job_are_kept_and_private(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, "print('line one'); raise RuntimeError('no such tensor')")) as rig:
        job = jobs.job()
        assert isinstance(await rig.run(job), Failed)
        assert left_behind(work_dir) == []
    kept = work_dir / "logs" / str(job.task_id)
    assert "no such tensor" in (kept / "output.log").read_text()
    assert json.loads((kept / "exit.json").read_text())["exit_code"] == 1
    assert kept.stat().st_mode & 0o777 == 0o700
    assert (kept / "output.log").stat().st_mode & 0o777 == 0o600


async def test_the_logs_are_kept_where_the_configuration_says(work_dir: Path, tmp_path: Path) -> None:
    async with open_rig(jobs.config(work_dir, "print('done')", log_dir=tmp_path / "job-logs")) as rig:
        job = jobs.job()
        assert isinstance(await rig.run(job), Finished)
    assert (tmp_path / "job-logs" / str(job.task_id) / "output.log").read_text().endswith("Z done\n")
    assert not (work_dir / "logs").exists()


async def test_no_logs_are_kept_for_no_time(work_dir: Path) -> None:
    async with open_rig(jobs.config(work_dir, "print('done')", keep_ended_s=0)) as rig:
        assert isinstance(await rig.run(jobs.job()), Finished)
    assert not (work_dir / "logs").exists()


async def test_a_job_without_a_readable_record_loses_its_directory_but_not_its_logs(work_dir: Path) -> None:
    directories = ControlDirectories(jobs.config(work_dir, ""))
    control = directories.paths(uuid4()).control
    control.mkdir()
    (control / ".hypha-worker").touch()
    (control / "output.log").write_text("the last words")
    assert directories.adopt() == []
    assert not control.exists()
    assert (work_dir / "logs" / control.name / "output.log").read_text() == "the last words"


def test_the_number_of_kept_jobs_is_bounded(tmp_path: Path) -> None:
    logs = EndedLogs(tmp_path, keep_s=1000, max_bytes=10**9)
    for _ in range(MAX_JOBS + 3):
        (tmp_path / str(uuid4())).mkdir()
    logs.prune()
    assert len(logs.newest_first()) == MAX_JOBS


def test_the_oldest_logs_go_first_and_other_files_stay(tmp_path: Path) -> None:
    logs = EndedLogs(tmp_path / "logs", keep_s=1000, max_bytes=100_000)
    kept = []
    for number in range(4):
        control = tmp_path / str(uuid4())
        control.mkdir()
        (control / "output.log").write_bytes(os.urandom(40_000))
        (logs.directory / "mine").mkdir(parents=True, exist_ok=True)
        logs.keep(control)
        kept.append(logs.directory / control.name)
        age_s = 100 - 10 * number
        os.utime(kept[-1], (kept[-1].stat().st_mtime - age_s,) * 2)
    logs.prune()
    assert [path.exists() for path in kept] == [False, False, True, True]
    os.utime(kept[2], (0, 0))
    logs.prune()
    assert [path.exists() for path in kept[2:]] == [False, True]
    assert (logs.directory / "mine").exists()
