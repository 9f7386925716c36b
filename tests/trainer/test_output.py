"""The trained model appears in the owner's directory complete or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hypha_trainer.output import keep_model

WEIGHTS = {"w": torch.tensor([1.0, 2.0])}
SIZE_BYTES = 8


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
    kept = keep_model(WEIGHTS, source, directory, "job-1", None)
    assert kept == directory / "job-1"
    assert sorted(path.name for path in directory.rglob("*")) == ["config.json", "job-1", "model.safetensors"]
    assert torch.equal(load_file(kept / "model.safetensors")["w"], WEIGHTS["w"])


def test_the_model_of_an_earlier_run_is_replaced_and_other_models_stay(source: Path, directory: Path) -> None:
    for name in ("job-1", "job-2", "job-1"):
        keep_model(WEIGHTS, source, directory, name, None)
        (directory / name / "mine").touch()
    keep_model(WEIGHTS, source, directory, "job-1", None)
    assert sorted(path.name for path in directory.iterdir()) == ["job-1", "job-2"]
    assert not (directory / "job-1" / "mine").exists()
    assert (directory / "job-2" / "mine").exists()


def test_nothing_is_kept_or_deleted_beyond_the_size_that_the_owner_allows(
    source: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.mkdir()
    (directory / "older").write_bytes(bytes(100))
    assert keep_model(WEIGHTS, source, directory, "job-1", 100 + SIZE_BYTES - 1) is None
    assert f"holds 100 of at most {100 + SIZE_BYTES - 1} bytes; remove models there" in capsys.readouterr().out
    assert [path.name for path in directory.iterdir()] == ["older"]
    assert keep_model(WEIGHTS, source, directory, "job-1", 100 + SIZE_BYTES)


def test_a_model_that_cannot_be_written_leaves_nothing_and_does_not_end_the_job(
    source: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hypha_trainer.output.save_tensors", full)
    assert keep_model(WEIGHTS, source, directory, "job-1", None) is None
    assert "cannot be kept" in capsys.readouterr().out
    assert list(directory.iterdir()) == []
