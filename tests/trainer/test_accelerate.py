"""What the accelerate configuration and the lease ask of a training, in the environment that the launcher makes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaMLP

from hypha_executor.errors import JobError
from hypha_trainer.training import main
from hypha_trainer.tuning import read_tuning, recompute_activations
from support.trainer import Bridge, Hub, job_spec, language_job, language_model, write_text_slices

from .conftest import OpenBridge

LANGUAGE_JOB = language_job(optimizer={"learning-rate": 5e-3, "epsilon": 1e-3})


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Forget accelerate's state, which a trainer sets in its process."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def arguments(bridge: Bridge, spec: dict[str, Any]) -> list[str]:
    return ["--socket", str(bridge.socket), "--work-dir", str(bridge.work_dir), "--job", json.dumps(spec)]


@pytest.fixture
def language_hub(tmp_path: Path) -> Hub:
    language_model(tied=True).save_pretrained(tmp_path / "llama")
    return Hub(tmp_path / "llama", write_text_slices(tmp_path))


@pytest.fixture
def train(tmp_path: Path, open_bridge: OpenBridge, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains the language model with variables of the launcher; returns the pseudo-gradients."""

    def run(hub: Hub, spec: dict[str, Any] = LANGUAGE_JOB, **variables: str) -> list[dict[str, torch.Tensor]]:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        before = len(hub.gradients)
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert main(arguments(open_bridge(hub), spec)) == 0
        return hub.gradients[before:]

    return run


def assert_close(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert [gradient.keys() for gradient in found] == [gradient.keys() for gradient in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("regional", ["false", "true"])
def test_a_compiled_model_trains_alike_and_exchanges_the_same_names(
    train: Any, language_hub: Hub, regional: str, tmp_path: Path
) -> None:
    variables = {"ACCELERATE_DYNAMO_BACKEND": "EAGER", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": regional}
    compiled = train(language_hub, **variables)
    assert not any("_orig_mod" in name for name in compiled[0])
    assert_close(compiled, train(Hub(language_hub.model, write_text_slices(tmp_path))))


def test_a_batch_in_parts_gives_the_gradient_of_the_complete_batch(
    train: Any, language_hub: Hub, tmp_path: Path
) -> None:
    parts = train(language_hub, ACCELERATE_GRADIENT_ACCUMULATION_STEPS="3")
    assert_close(parts, train(Hub(language_hub.model, write_text_slices(tmp_path))))


def test_clipped_gradients_change_the_model_less(train: Any, language_hub: Hub, tmp_path: Path) -> None:
    clipped = train(language_hub, ACCELERATE_GRADIENT_CLIPPING="0.0001")
    free = train(Hub(language_hub.model, write_text_slices(tmp_path)))
    assert max(float(t.abs().max()) for t in clipped[0].values()) < 0.1 * max(
        float(t.abs().max()) for t in free[0].values()
    )


def test_recomputed_activations_train_alike_and_run_each_layer_twice(
    train: Any, language_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, forward = [], LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: calls.append(1) or forward(self, x))
    saved = train(language_hub, FSDP_ACTIVATION_CHECKPOINTING="true")
    recomputed = len(calls)
    calls.clear()
    assert_close(saved, train(Hub(language_hub.model, write_text_slices(tmp_path))))
    batches = sum(int(metadata["samples"]) // 8 for metadata in language_hub.metadata)
    assert recomputed == 2 * 2 * batches, "two layers, each forward and again backward"
    assert len(calls) == 2 * batches


class Reads(TorchDispatchMode):
    """Notes embeddings, of which a batch has one, and numbers that are read from a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = {torch.ops.aten.embedding.default: "batch", torch.ops.aten._local_scalar_dense.default: "read"}
        if func in names:
            self.found.append(names[func])
        return func(*args, **(kwargs or {}))


def test_a_loss_is_read_after_the_next_batch_has_been_given_to_the_device(train: Any, language_hub: Hub) -> None:
    with Reads() as reads:
        train(language_hub)
    first = reads.found.index("batch")
    assert reads.found[first : first + 7] == ["batch", "batch", "read", "batch", "read", "batch", "read"]


def test_a_round_is_logged_with_its_throughput_and_its_waits(
    train: Any, language_hub: Hub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    train(language_hub)
    lines = [line for line in capfd.readouterr().out.splitlines() if "tokens/s" in line]
    assert len(lines) == language_hub.rounds
    assert "% for data, " in lines[0]
    metrics = [metric for batch in language_hub.telemetry for metric in batch["metrics"]]
    tokens = sum(metric["value"] for metric in metrics if metric["name"] == "hypha.job.tokens")
    assert tokens == 12 * sum(int(metadata["samples"]) for metadata in language_hub.metadata)


def test_a_loss_that_is_not_finite_is_logged_counted_and_not_reported(
    hub: Hub, open_bridge: OpenBridge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'ab' * 16}-{'cd' * 8}-01")
    for path in hub.slices:
        save_file({**load_file(path), "pixel_values": torch.full((20, 1, 8, 8), torch.inf)}, path)
    assert main(arguments(open_bridge(hub), job_spec())) == 1
    output = capfd.readouterr()
    assert "round 1: the loss of batch 1 is nan; the model may have diverged" in output.out
    assert "the model diverged" in output.err
    posted = [
        report["metrics"]["metrics"] for report in hub.reports[0] if isinstance(report, dict) and "metrics" in report
    ]
    assert posted
    assert all("loss" not in metrics for metrics in posted)
    metrics = [metric for batch in hub.telemetry for metric in batch["metrics"]]
    assert sum(m["value"] for m in metrics if m["name"] == "hypha.job.losses.not_finite") == hub.batches


def test_a_lease_with_a_gpu_is_not_trained_on_the_cpu_unless_the_owner_allows_it(
    hub: Hub, open_bridge: OpenBridge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEASE_GPUS", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert main(arguments(open_bridge(hub), job_spec())) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the lease has 1 GPU, but PyTorch")
    assert "add --allow-fewer-gpus to the executor's arguments" in last
    assert hub.gradients == []
    assert main([*arguments(open_bridge(hub), job_spec()), "--allow-fewer-gpus"]) == 0
    assert "warning: the lease has 1 GPU, but PyTorch" in capfd.readouterr().out


def test_a_precision_without_a_library_ends_with_one_line(
    hub: Hub, open_bridge: OpenBridge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert main(arguments(open_bridge(hub), job_spec())) == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "fp8" in line]
    assert line.startswith("error: mixed_precision is fp8, and this environment has no library for it")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "0", "gradient_accumulation_steps is 0; it must be a whole number"),
        ("GRADIENT_CLIPPING", "-1", "gradient_clipping is -1; it must be more than 0"),
        ("GRADIENT_CLIPPING", "much", "gradient_clipping is 'much'"),
    ],
)
def test_a_wrong_entry_of_the_accelerate_configuration_is_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(JobError, match=says):
        read_tuning({f"ACCELERATE_{name}": value})


def test_a_model_that_cannot_recompute_its_activations_is_refused() -> None:
    with pytest.raises(JobError, match="Linear cannot recompute its activations; set fsdp_activation_checkpointing"):
        recompute_activations(torch.nn.Linear(1, 1))


END = "<|endoftext|>"


def write_gpt2(folder: Path) -> Path:
    """A GPT-2 of one layer, and a byte-level tokenizer which, like GPT-2's, has an end token and no padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate([*alphabet, END])}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, model_max_length=32).save_pretrained(folder)
    sizes = {"vocab_size": len(alphabet) + 1, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    torch.manual_seed(0)
    end = {"bos_token_id": len(alphabet), "eos_token_id": len(alphabet)}
    GPT2LMHeadModel(GPT2Config(**sizes, **end)).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_padding_pads_with_its_end_token_which_is_masked_only_there(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{'word ' * (row % 3 + 1)}{END}".encode().ljust(32, b"\0") for row in range(20)]
    save_file({"text": torch.tensor([list(text) for text in texts], dtype=torch.uint8)}, tmp_path / "slice.safetensors")
    hub = Hub(write_gpt2(tmp_path / "gpt2"), [tmp_path / "slice.safetensors"])
    files = {"type": "huggingface", "repository": "tests/gpt2", "filenames": ["config.json", "model.safetensors"]}
    tokenizer = {**files, "filenames": ["tokenizer.json", "tokenizer_config.json"]}
    model = {"task": "causal-lm", "artifact": files, "input-names": ["input_ids", "attention_mask", "labels"]}
    spec = job_spec(model=model, preprocessor={"task": "tokenizer", "artifact": tokenizer, "input-names": ["text"]})
    batches, forward = [], GPT2LMHeadModel.forward
    monkeypatch.setattr(
        GPT2LMHeadModel, "forward", lambda self, **inputs: batches.append(inputs) or forward(self, **inputs)
    )
    train(hub, spec)
    for batch in batches:
        padding = batch["attention_mask"] == 0
        assert padding.any()
        assert (batch["input_ids"][padding] == 256).all()
        assert (batch["labels"][padding] == -100).all()
        assert (batch["labels"][~padding] == batch["input_ids"][~padding]).all()
        assert ((batch["labels"] == 256).sum(1) == 1).all(), "the end of each text is learned"
