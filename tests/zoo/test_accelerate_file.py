"""Trainers that a HyphaWorker's accelerate configuration starts, over real bridges with the real parameter server."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from hypha_operator.pods.accelerate import accelerate_file
from hypha_resources.accelerate import Accelerate
from support.trainer import language_model
from zoo.family import BATCH, Family, Tensors
from zoo.jobs import BATCHES, TRAINERS, Jobs, open_jobs

pytestmark = pytest.mark.timeout(300)


def rows(count: int) -> Tensors:
    """Make rows of tokens, all of one length, because each process averages its loss over its own tokens."""
    ids = (torch.arange(count).unsqueeze(1) + torch.arange(12)) % 29 + 3
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


LLAMA = Family("llama", "causal-lm", language_model, rows, ("input_ids", "attention_mask", "labels"), epsilon=1e-3)
"""With a large epsilon, the smallest gradients do not become steps of the size of the learning rate."""
ON_CPUS = Path(__file__).parents[1] / "support" / "parallel_trainer.py"
"""accelerate shards models on GPUs alone, so the tests make it take CPUs for GPUs."""
FSDP = {"fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_activation_checkpointing": True}
WAYS: dict[str, dict[str, Any]] = {
    "data-parallel": {},
    "fsdp-from-file": {"distributed_type": "FSDP", "fsdp_config": FSDP},
    "tensor-parallel-from-file": {"parallelism_config": {"parallelism_config_tp_size": 4}},
    "in-parts": {"deepspeed_config": {"gradient_accumulation_steps": 2}, "dynamo_config": {"dynamo_backend": "EAGER"}},
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    torch.set_num_threads(1)
    with open_jobs(tmp_path_factory.mktemp("accelerate")) as opened:
        LLAMA.write(opened.folder(LLAMA))
        yield opened


@pytest.fixture(scope="module")
def slices() -> list[list[Tensors]]:
    data = LLAMA.data(len(TRAINERS) * BATCHES * BATCH)
    return [[{name: part.chunk(len(TRAINERS))[n] for name, part in data.items()}] for n in range(len(TRAINERS))]


@pytest.fixture(scope="module")
def alone(jobs: Jobs, slices: list[list[Tensors]]) -> list[list[Tensors]]:
    """What trainers of one process each send."""
    return sent(jobs, LLAMA, slices)


def sent(jobs: Jobs, family: Family, slices: list[list[Tensors]]) -> list[list[Tensors]]:
    outcome = jobs.train(family, slices)
    assert outcome.codes == (0, 0), outcome.logs
    return [[load(data) for data in pushes] for pushes in outcome.sent]


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_send_the_complete_pseudo_gradients_of_one(
    way: str, jobs: Jobs, slices: list[list[Tensors]], alone: list[list[Tensors]], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "accelerate.yaml"
    file.write_text(accelerate_file(Accelerate.model_validate({"num_processes": 2} | WAYS[way]), devices=0))
    program = [str(ON_CPUS), way] if "from-file" in way else ["-m", "hypha_trainer"]
    launched = jobs.launched_by([sys.executable, "-m", "hypha_trainer.launch", "--config_file", str(file), *program])
    for ours, expected in zip(sent(launched, LLAMA, slices), alone, strict=True):
        assert len(ours) == len(expected)
        for push, one in zip(ours, expected, strict=True):
            assert push.keys() == one.keys()
            for name, tensor in one.items():
                torch.testing.assert_close(push[name], tensor, rtol=1e-3, atol=1e-5)
