"""A trainer that crashes is started again, and goes on from the last global weights."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from hypha_executor.errors import JobError
from hypha_trainer.checkpoint import Checkpoint, Merged, Progress, Stage, resume
from support.trainer import JOB_ID, Bridge, Hub, batches_of_last_round, job_spec
from support.waiting import until

from .conftest import OpenBridge

pytestmark = pytest.mark.timeout(400)

TRAINER = ("-m", "hypha_trainer.training")


def start(bridge: Bridge, output: Path) -> "subprocess.Popen[str]":
    options = ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir), "--output-dir", str(output)]
    command = [sys.executable, "-m", "hypha_executor.restart", *TRAINER, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*command, "--job", json.dumps(job_spec())], env=environment, stdout=subprocess.PIPE, text=True
    )


def kill_trainer(supervisor: "subprocess.Popen[str]") -> None:
    """Kill the program that the supervisor runs, as the kernel does for lack of memory."""
    [trainer] = psutil.Process(supervisor.pid).children()
    trainer.send_signal(signal.SIGKILL)


def in_the_second_round(hub: Hub) -> bool:
    reports = hub.reports[0]
    begun = reports.count("update-received") == 1
    return begun and len(batches_of_last_round(reports)) > 2  # by then it has saved the answer that comes only once


def waiting_for_the_first_update(hub: Hub) -> bool:
    return len(hub.gradients) == 1


@pytest.mark.parametrize("moment", [in_the_second_round, waiting_for_the_first_update])
def test_a_killed_trainer_goes_on_and_both_trainers_end_with_the_same_model(
    hub: Hub, open_bridge: OpenBridge, tmp_path: Path, moment: Callable[[Hub], bool]
) -> None:
    hub.trainers, hub.rounds, hub.batches = 2, 3, 30
    bridges = [open_bridge(hub), open_bridge(hub)]
    first = start(bridges[0], tmp_path / "out0")
    if moment is waiting_for_the_first_update:
        until(lambda: moment(hub), 150)
        kill_trainer(first)
        second = start(bridges[1], tmp_path / "out1")
    else:
        second = start(bridges[1], tmp_path / "out1")
        until(lambda: moment(hub), 150)
        kill_trainer(first)
    outputs = [trainer.communicate()[0] for trainer in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert "executor: it was ended by SIGKILL; restart 1 of 2" in outputs[0]
    models = [load_file(tmp_path / f"out{n}" / JOB_ID / "model.safetensors") for n in range(2)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert len(hub.updates) == hub.rounds
    assert len(hub.gradients) == 2 * hub.rounds, "no pseudo-gradient was sent twice"
    begun = load_file(hub.model / "model.safetensors")
    for name, tensor in models[0].items():
        torch.testing.assert_close(tensor, begun[name] + sum(update[name] for update in hub.updates))
    reported = [r["metrics"]["metrics"] for r in hub.reports[0] if isinstance(r, dict) and "metrics" in r]
    assert reported[-1]["restarts"] == 1
    assert not list((bridges[0].work_dir / "incoming").iterdir())


WEIGHTS = {"w": torch.zeros(3)}


@pytest.mark.parametrize(
    ("merged", "progress", "stage", "round_number"),
    [
        (0, None, Stage.TRAIN, 1),
        (2, None, Stage.TRAIN, 3),
        (2, Progress(3), Stage.TRAIN, 3),
        (2, Progress(3, batches_left=4), Stage.TRAIN, 3),
        (2, Progress(3, sent=True), Stage.AWAIT_UPDATE, 3),
        (3, Progress(3, sent=True), Stage.REPORT_UPDATE, 3),
    ],
)
def test_a_crash_between_any_two_steps_has_a_next_step(
    merged: int, progress: Progress | None, stage: Stage, round_number: int
) -> None:
    resumed = resume(Merged(merged), progress)
    assert (resumed.stage, resumed.progress.round) == (stage, round_number)


@pytest.mark.parametrize(("merged", "progress"), [(0, Progress(2)), (1, Progress(4, sent=True)), (3, Progress(2))])
def test_weights_of_another_round_are_refused(merged: int, progress: Progress) -> None:
    with pytest.raises(
        JobError, match=f"cannot go on in round {progress.round}.* of round {merged}; give the job more"
    ):
        resume(Merged(merged), progress)


def test_the_kept_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.load(WEIGHTS).stage is Stage.TRAIN
    weights = {"w": torch.tensor([1.0, -2.5, 3e-9])}
    checkpoint.keep_weights(weights, Merged(2, "7", 40))
    checkpoint.keep_progress(Progress(3, batches_left=5))
    loaded = {"w": torch.zeros(3)}
    resumed = checkpoint.load(loaded)
    assert (resumed.merged, resumed.progress) == (Merged(2, "7", 40), Progress(3, batches_left=5))
    assert torch.equal(loaded["w"], weights["w"])


@pytest.mark.parametrize("name", ["global-weights.safetensors", "progress.json"])
def test_a_damaged_file_ends_the_job(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}x")
    with pytest.raises(JobError, match=f"{name} does not hold"):
        Checkpoint(tmp_path).load({"w": torch.zeros(3)})


def test_a_full_disk_ends_neither_the_round_nor_is_an_older_model_taken_for_the_last(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    checkpoint.keep_weights(WEIGHTS, Merged(1, "0", 10))
    (tmp_path / "global-weights.partial").symlink_to("/dev/full")
    checkpoint.keep_weights(WEIGHTS, Merged(2, "1", 20))
    checkpoint.keep_progress(Progress(3))
    with pytest.raises(JobError, match=r"cannot go on in round 3, because the last weights .* are of round 1"):
        checkpoint.load({"w": torch.zeros(3)})
