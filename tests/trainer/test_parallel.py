import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

from hypha_operator.pods.accelerate import accelerate_file
from hypha_resources.accelerate import Accelerate
from hypha_trainer.training import main
from support.trainer import Bridge, Hub, job_spec, language_job, language_model, write_text_slices

from .conftest import OpenBridge

PROCESS = Path(__file__).parents[1] / "support" / "parallel_trainer.py"
SPEC = language_job("attention_mask", batch_size=9, optimizer={"learning-rate": 5e-3, "epsilon": 1e-3})
FSDP = {"distributed_type": "FSDP"}
SHARDS = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
COMPILED = {"dynamo_config": {"dynamo_backend": "EAGER"}}
REGIONS = {"dynamo_config": {"dynamo_backend": "EAGER", "dynamo_use_regional_compilation": True}}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "data parallel": ("data-parallel", {}),
    "compiled, in parts": ("data-parallel", COMPILED | {"deepspeed_config": {"gradient_accumulation_steps": 2}}),
    "sharded": ("fsdp", FSDP | {"fsdp_config": SHARDS}),
    "sharded, compiled, recomputed": (
        "fsdp",
        FSDP | REGIONS | {"fsdp_config": SHARDS | {"fsdp_activation_checkpointing": True}},
    ),
    "tensor parallel": ("tensor-parallel", {"parallelism_config": {"parallelism_config_tp_size": 4}}),
}
"""For each way, how the processes spread the model, and the accelerate configuration of a HyphaWorker."""


def language_hub(folder: Path) -> Hub:
    language_model(tied=True).save_pretrained(folder / "model")
    return Hub(folder / "model", write_text_slices(folder), batches=6, rounds=2, learning_rate=0.7, momentum=0.9)


def arguments(bridge: Bridge, spec: dict[str, Any] = SPEC) -> list[str]:
    return ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir), "--job", json.dumps(spec)]


LAUNCH = (
    *(sys.executable, "-m", "hypha_trainer.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


def start(*command: str, **environment: str) -> "subprocess.Popen[str]":
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def listening(launcher: psutil.Process) -> set[tuple[int, str]]:
    """Return the process id and address of each TCP or UDP socket that accepts from others, below a launcher."""
    found = set()
    for process in (launcher, *launcher.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections(kind="inet")
            found |= {(process.pid, sock.laddr.ip) for sock in sockets if sock.laddr and not sock.raddr}
    return found


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_exactly_as_one(
    way: str, tmp_path: Path, open_bridge: OpenBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = language_hub(tmp_path)
    spread, config = WAYS[way]
    file = tmp_path / "accelerate.yaml"
    file.write_text(accelerate_file(Accelerate.model_validate({"num_processes": 2} | config), devices=0))
    launch = (sys.executable, "-m", "hypha_trainer.launch", "--config_file", str(file))
    process = start(*launch, str(PROCESS), spread, *arguments(open_bridge(hub)))
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "5,200 parameters, 2 x cpu" in output

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


def test_two_processes_train_a_model_that_uses_other_layers_in_each_batch_and_some_parameters_never(
    tmp_path: Path, open_bridge: OpenBridge
) -> None:
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,),
        conv_stride=(5,),
        conv_kernel=(10,),
        num_feat_extract_layers=1,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=4,
        layerdrop=0.5,  # each process drops its own layers
        apply_spec_augment=False,  # so masked_spec_embed is not used
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    rows = {"input_values": torch.randn(20, 400), "labels": torch.arange(20) % 4}
    save_file(rows, tmp_path / "slice.safetensors")
    hub = Hub(tmp_path / "model", [tmp_path / "slice.safetensors"], batches=8, rounds=2)
    files = {"type": "huggingface", "repository": "tests/sound", "filenames": ["config.json", "model.safetensors"]}
    model = {"task": "audio-classification", "artifact": files, "input-names": ["input_values", "labels"]}
    process = start(*LAUNCH, "-m", "hypha_trainer.training", *arguments(open_bridge(hub), job_spec(model=model)))
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert len(hub.gradients) == 2
    assert any(gradient.abs().max() > 1e-4 for gradient in hub.gradients[0].values())
    assert hub.gradients[0]["wav2vec2.masked_spec_embed"].abs().max() == 0, "unused, so not even decayed"


def test_fsdp_of_the_first_version_is_refused_with_the_remedy(tmp_path: Path, open_bridge: OpenBridge) -> None:
    process = start(
        sys.executable, str(PROCESS), "fsdp", *arguments(open_bridge(language_hub(tmp_path))), FSDP_VERSION="1"
    )
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert "set fsdp_config.fsdp_version: 2 in the accelerate configuration" in output


def test_the_processes_of_a_trainer_listen_on_loopback_only(tmp_path: Path, open_bridge: OpenBridge) -> None:
    process = start(*LAUNCH, "-m", "hypha_trainer.training", *arguments(open_bridge(language_hub(tmp_path))))
    launcher, found = psutil.Process(process.pid), set[tuple[int, str]]()
    while process.poll() is None:
        found |= listening(launcher)
    assert process.returncode == 0, process.communicate()[0]
    assert {address for _, address in found} == {"127.0.0.1"}
    assert len({pid for pid, _ in found}) == 2, "each process listens for the other one"


def test_several_processes_of_a_launcher_with_open_sockets_are_refused(tmp_path: Path, open_bridge: OpenBridge) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    trainer = (sys.executable, "-m", "hypha_trainer.training")
    process = start(*trainer, *arguments(open_bridge(language_hub(tmp_path))), **ranks)
    output = process.communicate()[0]
    assert process.returncode == 2, output
    assert "use `python -m hypha_trainer.launch`" in output
