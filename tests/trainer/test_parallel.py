import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hypha_trainer.training import main
from support.trainer import Bridge, Hub, language_job, language_model, write_text_slices

from .conftest import OpenBridge

PROCESS = Path(__file__).parents[1] / "support" / "parallel_trainer.py"
SPEC = language_job(batch_size=9, optimizer={"learning-rate": 5e-3, "epsilon": 1e-3})


def language_hub(folder: Path) -> Hub:
    language_model(tied=True).save_pretrained(folder / "model")
    return Hub(folder / "model", write_text_slices(folder), batches=6, rounds=2, learning_rate=0.7, momentum=0.9)


def arguments(bridge: Bridge) -> list[str]:
    return ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir), "--job", json.dumps(SPEC)]


def run(way: str, bridge: Bridge, count: int = 2) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    command = [sys.executable, str(PROCESS), way, *arguments(bridge)]
    processes = [
        subprocess.Popen(
            command,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate()[0] for process in processes]
    return [f"{process.returncode}\n{output}" for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("way", ["ddp", "fsdp", "tensor-parallel"])
def test_two_processes_train_exactly_as_one(
    way: str, tmp_path: Path, open_bridge: OpenBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = language_hub(tmp_path)
    outputs = run(way, open_bridge(hub))
    assert all(output.startswith("0\n") for output in outputs), outputs
    assert "5,200 parameters, 2 x cpu" in outputs[0]

    (tmp_path / "alone").mkdir()
    alone = language_hub(tmp_path / "alone")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main(arguments(open_bridge(alone))) == 0

    assert [gradient.keys() for gradient in hub.gradients] == [gradient.keys() for gradient in alone.gradients]
    for ours, expected in zip(hub.gradients, alone.gradients, strict=True):
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in alone.gradients[1].values())
    assert [metadata["samples"] for metadata in hub.metadata] == ["54", "54"]


def test_fsdp_of_the_first_version_is_refused_with_the_remedy(tmp_path: Path, open_bridge: OpenBridge) -> None:
    (output,) = run("fsdp1", open_bridge(language_hub(tmp_path)), count=1)
    assert output.startswith("2\n"), output
    assert "set fsdp_config.fsdp_version: 2 in the accelerate configuration" in output
