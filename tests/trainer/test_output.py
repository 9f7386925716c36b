"""The trained model appears in the owner's directory complete or not at all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hypha_trainer.output import keep_model

WEIGHTS = {"w": torch.tensor([1.0, 2.0])}
SIZE_BYTES = 8
WORK_DIR = Path("/jobs/hypha-1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "models"


def test_weights_and_configuration_are_kept_and_nothing_else(source: Path, directory: Path) -> None:
    kept = keep_model(WEIGHTS, source, directory, "job-1", None, work_dir=WORK_DIR)
    assert kept == directory / "job-1"
    assert sorted(path.name for path in directory.rglob("*")) == ["config.json", "job-1", "model.safetensors"]
    assert torch.equal(load_file(kept / "model.safetensors")["w"], WEIGHTS["w"])


def test_the_model_of_an_earlier_run_is_replaced_and_other_models_stay(source: Path, directory: Path) -> None:
    for name in ("job-1", "job-2", "job-1"):
        keep_model(WEIGHTS, source, directory, name, None, work_dir=WORK_DIR)
        (directory / name / "mine").touch()
    keep_model(WEIGHTS, source, directory, "job-1", None, work_dir=WORK_DIR)
    assert sorted(path.name for path in directory.iterdir()) == ["job-1", "job-2"]
    assert not (directory / "job-1" / "mine").exists()
    assert (directory / "job-2" / "mine").exists()


def test_nothing_is_kept_or_deleted_beyond_the_size_that_the_owner_allows(
    source: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.mkdir()
    (directory / "older").write_bytes(bytes(100))
    assert keep_model(WEIGHTS, source, directory, "job-1", 100 + SIZE_BYTES - 1, work_dir=WORK_DIR) is None
    assert f"holds 100 of at most {100 + SIZE_BYTES - 1} bytes; remove models there" in capsys.readouterr().out
    assert [path.name for path in directory.iterdir()] == ["older"]
    assert keep_model(WEIGHTS, source, directory, "job-1", 100 + SIZE_BYTES, work_dir=WORK_DIR)


def test_a_model_that_cannot_be_written_leaves_nothing_and_does_not_end_the_job(
    source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hypha_trainer.output.save_tensors", full)
    assert keep_model(WEIGHTS, source, directory, "job-1", None, work_dir=WORK_DIR) is None
    assert "cannot be kept" in capsys.readouterr().out
    assert list(directory.iterdir()) == []


def test_what_a_killed_trainer_left_is_removed_when_the_same_job_keeps_its_model(source: Path, directory: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from hypha_trainer import output
output.save_tensors = lambda file, *_: (file.write_bytes(bytes(100)), os.kill(os.getpid(), signal.SIGKILL))
source, directory, work_dir = map(Path, {[str(path) for path in (source, directory, WORK_DIR)]})
output.keep_model({{}}, source, directory, "job-1", None, work_dir=work_dir)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    (left,) = directory.iterdir()
    (of_another := left.with_name(f"{left.name}0")).mkdir()
    assert keep_model(WEIGHTS, source, directory, "job-1", SIZE_BYTES, work_dir=WORK_DIR), (
        "what was left does not count"
    )
    assert sorted(directory.iterdir()) == [of_another, directory / "job-1"]
