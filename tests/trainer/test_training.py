import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from hypha_telemetry.job_metrics import PROGRESS
from hypha_trainer.training import main
from support.trainer import JOB_ID, Bridge, Hub, batches_of_last_round, job_spec

from .conftest import OpenBridge


def arguments(bridge: Bridge, spec: dict[str, Any], *more: str) -> list[str]:
    return ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir), "--job", json.dumps(spec), *more]


def start(bridge: Bridge, spec: dict[str, Any], *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "hypha_trainer.training", *arguments(bridge, spec, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_job_is_trained_to_its_end(hub: Hub, open_bridge: OpenBridge, tmp_path: Path) -> None:
    bridge = open_bridge(hub)
    (tmp_path / "job.json").write_text(json.dumps(job_spec()))
    where = ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir)]
    assert main([*where, "--job-file", str(tmp_path / "job.json"), "--output-dir", str(tmp_path / "out")]) == 0

    reports = hub.reports[0]
    stages = [report for report in reports if isinstance(report, str)]
    assert stages == ["update", "update-received"] * hub.rounds
    statuses = [report for report in reports if isinstance(report, dict) and "status" in report]
    assert statuses == [{"status": {"batch_size": 8}}] * len(statuses)
    trained = [int(metadata["samples"]) // 8 for metadata in hub.metadata]
    assert sum(trained) == len(statuses)
    assert trained == [hub.batches] * hub.rounds
    assert [(m["job_id"], m["round"]) for m in hub.metadata] == [(JOB_ID, "1"), (JOB_ID, "2")]
    samples = sum(r["metrics"]["metrics"]["samples"] for r in reports if isinstance(r, dict) and "metrics" in r)
    assert samples == 8 * len(statuses)

    # Outer learning rate 1 and no momentum: the global weights are those the trainer had, so start + all it sent.
    start_weights = load_file(hub.model / "model.safetensors")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / JOB_ID)
    for name, tensor in model.state_dict().items():
        expected = start_weights[name] + sum(gradient[name] for gradient in hub.gradients)
        torch.testing.assert_close(tensor, expected)
    assert any(gradient.abs().max() > 1e-4 for gradient in hub.gradients[1].values())
    kept = {"global-weights.safetensors", "progress.json"}
    assert {path.name for path in bridge.work_dir.iterdir()} == {"artifacts", "incoming", "bridge.sock", *kept}
    assert not (bridge.work_dir / "artifacts" / "model.safetensors").exists(), "the kept weights are in its place"
    assert not list((bridge.work_dir / "incoming").iterdir())


def test_two_trainers_agree_on_the_model_and_learn(hub: Hub, open_bridge: OpenBridge, tmp_path: Path) -> None:
    hub.trainers, hub.rounds, hub.batches, hub.learning_rate, hub.momentum = 2, 4, 20, 0.7, 0.5
    trainers = [start(open_bridge(hub), job_spec(), "--output-dir", str(tmp_path / f"out{n}")) for n in range(2)]
    outputs = [trainer.communicate()[0] for trainer in trainers]
    assert [trainer.returncode for trainer in trainers] == [0, 0], outputs
    models = [load_file(tmp_path / f"out{n}" / JOB_ID / "model.safetensors") for n in range(2)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    losses = [r["metrics"]["metrics"]["loss"] for r in hub.reports[0] if isinstance(r, dict) and "metrics" in r]
    assert losses[-1] < 0.7 * losses[0]


def test_an_interrupted_event_stream_and_an_unavailable_bridge_do_not_stop_a_job(
    hub: Hub, open_bridge: OpenBridge
) -> None:
    bridge = open_bridge(hub)
    bridge.drop_events = 2
    bridge.failures = {"/status/send": 2, "/resources/send": 1, "/resources/fetch": 1}
    assert main(arguments(bridge, job_spec())) == 0
    assert len(hub.updates) == hub.rounds


def test_bfloat16_autocast_leaves_weights_and_pseudo_gradients_in_float32(
    hub: Hub, open_bridge: OpenBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge = open_bridge(hub)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = start(bridge, job_spec())
    output = trainer.communicate()[0]
    assert trainer.returncode == 0, output
    assert "mixed precision: bf16" in output
    assert {tensor.dtype for tensor in hub.gradients[0].values()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"batch_size": 0}, 2, "batch_size must be a number"),
        (
            {"model": {**job_spec()["executor"]["config"]["model"], "input-names": ["pixels", "labels"]}},
            2,
            "a slice has no tensors ['pixels'], only ['labels', 'pixel_values']",
        ),
        (
            {"model": {**job_spec()["executor"]["config"]["model"], "input-names": ["pixel_values"]}},
            1,
            "computed no loss; name its labels",
        ),
        (
            {"model": {**job_spec()["executor"]["config"]["model"], "task": "causal-lm"}},
            2,
            "the model cannot be built as 'causal-lm'",
        ),
    ],
)
def test_a_job_that_cannot_be_trained_ends_with_one_line_and_an_exit_code(
    hub: Hub, open_bridge: OpenBridge, capfd: pytest.CaptureFixture[str], change: dict[str, Any], code: int, says: str
) -> None:
    assert main(arguments(open_bridge(hub), job_spec(**change))) == code
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last


def test_a_batch_that_the_model_refuses_is_described(
    hub: Hub, open_bridge: OpenBridge, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in hub.slices:
        save_file({"pixel_values": torch.zeros(20, 3, 8, 8), "labels": torch.zeros(20, dtype=torch.uint8)}, path)
    assert main(arguments(open_bridge(hub), job_spec())) == 1
    assert "refused a batch (pixel_values float32 [8, 3, 8, 8], labels int64 [8])" in capfd.readouterr().err


def test_a_terminated_trainer_stops_while_it_waits_for_an_update(hub: Hub, open_bridge: OpenBridge) -> None:
    hub.trainers = 2  # so the update never comes
    trainer = start(open_bridge(hub), job_spec())
    assert trainer.stdout is not None
    assert any("pseudo-gradient sent" in line for line in trainer.stdout)
    trainer.terminate()
    assert trainer.wait(timeout=20) == 143


def test_a_trainer_whose_bridge_is_gone_ends(hub: Hub, open_bridge: OpenBridge) -> None:
    hub.trainers = 2
    bridge = open_bridge(hub)
    trainer = start(bridge, job_spec())
    assert trainer.stdout is not None
    assert any("pseudo-gradient sent" in line for line in trainer.stdout)
    bridge.close()
    bridge.end_events()
    assert trainer.wait(timeout=60) == 3
    assert batches_of_last_round(hub.reports[0])


def test_an_update_that_does_not_come_in_time_is_reported_with_the_remedy(
    hub: Hub, open_bridge: OpenBridge, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.trainers = 2
    assert main(arguments(open_bridge(hub), job_spec(), "--update-timeout-s", "0.1")) == 3
    assert "is the parameter server alive? (--update-timeout-s" in capfd.readouterr().err


def test_a_traced_job_reports_its_rounds_and_what_it_waited_for(
    hub: Hub, open_bridge: OpenBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    assert main(arguments(open_bridge(hub), job_spec())) == 0
    spans = [span for batch in hub.telemetry for span in batch["spans"]]
    rounds = [span["attributes"]["round"] for span in spans if span["name"] == "pseudo-gradient sent"]
    assert rounds == list(range(1, hub.rounds + 1))
    assert {"batch", "pseudo-gradient sent", "update received", "outer step"} == {span["name"] for span in spans}
    metrics = [metric for batch in hub.telemetry for metric in batch["metrics"]]
    known = {item.metric.name: item for item in PROGRESS}
    assert all(known[metric["name"]].allows(metric["attributes"]) for metric in metrics)
    waited = {metric["attributes"]["for"] for metric in metrics if metric["name"] == "hypha.job.waiting.time"}
    assert waited == {"data", "network", "update"}
