"""The inference executor, against a bridge and real models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from hypha_telemetry.job_metrics import PROGRESS
from hypha_trainer.inference import main
from hypha_trainer.predictions import join
from support.inference import Surroundings, inference_spec
from support.trainer import JOB_ID, language_model, write_digit_slices, write_text_slices


@pytest.fixture
def around(model_folder: Path, tmp_path: Path) -> Iterator[Surroundings]:
    surroundings = Surroundings(model_folder, write_digit_slices(tmp_path, count=3), tmp_path / "hypha-job")
    yield surroundings
    surroundings.close()


def run(around: Surroundings, spec: dict[str, Any], *more: str) -> int:
    where = ["--socket", str(around.socket), "--work-dir", str(around.work_dir)]
    return main([*where, "--job", json.dumps(spec), *more])


def expected_logits(around: Surroundings, number: int) -> torch.Tensor:
    model = AutoModelForImageClassification.from_pretrained(around.model).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(load_file(around.slices[number])["pixel_values"]).logits
    return logits


def test_each_slice_is_predicted_once_and_can_be_joined_with_its_input(around: Surroundings) -> None:
    assert run(around, inference_spec()) == 0
    assert [predicted.metadata for predicted in around.received] == [
        {"job_id": JOB_ID, "samples": "20", "dataset": "digits", "slice_index": str(number)} for number in range(3)
    ]
    for number, predicted in enumerate(around.received):
        assert list(predicted.tensors) == ["logits"]
        torch.testing.assert_close(predicted.tensors["logits"], expected_logits(around, number))
    assert {path.name for path in around.work_dir.iterdir()} == {"artifacts", "bridge.sock"}
    assert {path.name for path in (around.work_dir / "artifacts").iterdir()} == {"config.json", "model.safetensors"}


def test_batches_are_reported_with_their_samples_and_a_slice_after_its_predictions_arrived(
    around: Surroundings,
) -> None:
    arrived: list[int] = []
    around.answer = lambda report: (arrived.append(len(around.received)) if "predicted" in report else None) or "Ok"
    assert run(around, inference_spec()) == 0
    statuses = [report["status"]["batch_size"] for report in around.reports if "status" in report]
    assert statuses == [8, 8, 4] * 3, "a batch never spans two slices"
    predicted = [report["predicted"] for report in around.reports if "predicted" in report]
    assert predicted == [{"index": number, "samples": 20} for number in range(3)]
    assert arrived == [1, 2, 3]


def test_the_job_ends_when_the_scheduler_says_that_it_is_done(around: Surroundings) -> None:
    around.answer = lambda report: "Done" if report == {"predicted": {"index": 0, "samples": 20}} else "Continue"
    assert run(around, inference_spec()) == 0
    assert len(around.received) < 3


def test_a_job_without_slices_ends_well(around: Surroundings) -> None:
    around.slices.clear()
    assert run(around, inference_spec()) == 0
    assert not around.reports


def test_predictions_are_kept_where_the_owner_says(around: Surroundings, tmp_path: Path) -> None:
    assert run(around, inference_spec(results=None), "--output-dir", str(tmp_path / "kept")) == 0
    assert not around.received
    kept = sorted((tmp_path / "kept" / JOB_ID).iterdir())
    assert [path.name for path in kept] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    torch.testing.assert_close(load_file(kept[1])["logits"], expected_logits(around, 1))


def test_the_directory_of_kept_predictions_does_not_grow_beyond_its_limit(
    around: Surroundings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    (kept / "an older job").mkdir(parents=True)
    (kept / "an older job" / "0.safetensors").write_bytes(bytes(100_000))
    assert run(around, inference_spec(results=None), "--output-dir", str(kept), "--output-max-bytes", "100000") == 1
    assert "of at most 100000 bytes" in capfd.readouterr().err
    assert not list((kept / JOB_ID).iterdir())


def test_the_model_is_in_evaluation_mode(around: Surroundings, tmp_path: Path) -> None:
    folder = tmp_path / "dropout"
    model = AutoModelForImageClassification.from_pretrained(around.model)
    model.config.drop_path_rate = 0.9
    model.save_pretrained(folder)
    around.model = folder
    assert run(around, inference_spec()) == 0
    torch.testing.assert_close(around.received[0].tensors["logits"], expected_logits(around, 0))


def test_the_model_has_the_configured_dtype(around: Surroundings) -> None:
    assert run(around, inference_spec(), "--dtype", "bfloat16") == 0
    logits = around.received[0].tensors["logits"]
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected_logits(around, 0), atol=0.1, rtol=0.1)


def test_only_the_named_outputs_of_a_language_model_are_kept(around: Surroundings, tmp_path: Path) -> None:
    language_model().save_pretrained(tmp_path / "llama")
    around.model, around.slices = tmp_path / "llama", write_text_slices(tmp_path, count=1)
    model = inference_spec()["executor"]["config"]["model"] | {"task": "causal-lm", "input-names": ["input_ids"]}
    assert run(around, inference_spec(model=model, outputs=["logits"])) == 0
    assert around.received[0].tensors["logits"].shape == (20, 12, 32)


def test_batches_of_different_lengths_are_padded_with_zeros() -> None:
    joined = join([{"logits": torch.ones(1, 2, 3)}, {"logits": torch.ones(2, 4, 3)}])["logits"]
    assert joined.shape == (3, 4, 3)
    assert joined[0].sum() == 2 * 3
    assert joined[0, 2:].abs().sum() == 0
    assert joined[1:].min() == 1


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"batch_size": 0}, 2, "batch_size must be a number"),
        ({"results": None}, 2, "keeps no predictions (--output-dir)"),
        ({"outputs": ["boxes"]}, 2, "the model has no outputs ['boxes'], only ['logits']"),
        ({"data": {"type": "scheduler", "peer": "x"}}, 2, "config.data.dataset is missing"),
    ],
)
def test_a_job_that_cannot_be_run_ends_with_one_line_and_an_exit_code(
    around: Surroundings, capfd: pytest.CaptureFixture[str], change: dict[str, Any], code: int, says: str
) -> None:
    assert run(around, inference_spec(**change)) == code
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last


def test_a_model_without_trained_weights_is_refused(
    around: Surroundings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = load_file(around.model / "model.safetensors")
    folder = tmp_path / "headless"
    folder.mkdir()
    (folder / "config.json").write_bytes((around.model / "config.json").read_bytes())
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    around.model = folder
    assert run(around, inference_spec()) == 2
    assert "lack the weights ['classifier.bias', 'classifier.weight']" in capfd.readouterr().err


def test_a_slice_that_the_scheduler_does_not_count_ends_the_job(
    around: Surroundings, capfd: pytest.CaptureFixture[str]
) -> None:
    around.answer = lambda report: "Error" if "predicted" in report else "Continue"
    assert run(around, inference_spec()) == 1
    assert "does not count the predictions of slice 0" in capfd.readouterr().err


def test_a_traced_job_reports_what_it_waited_for(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    assert run(around, inference_spec()) == 0
    spans = [span for batch in around.telemetry for span in batch["spans"]]
    assert [span["name"] for span in spans].count("predictions delivered") == 3
    metrics = [metric for batch in around.telemetry for metric in batch["metrics"]]
    known = {item.metric.name: item for item in PROGRESS}
    assert all(known[metric["name"]].allows(metric["attributes"]) for metric in metrics)
    assert "data" in {metric["attributes"].get("for") for metric in metrics}
