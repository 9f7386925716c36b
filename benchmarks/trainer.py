"""Samples per second of the trainer's inner loop, compared with a bare loop of accelerate over the same model and data.

Both train a GPT-2 with AdamW in processes of their own, with one thread each, and take turns. The trainer runs a job
with all reports to its scheduler. Its batches are timed from the report of a round's first to that of its last.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.figures import Figure, spread
from benchmarks.nodes import BenchmarkError
from benchmarks.trainer_bridge import PEER, Bridge

_STOP_S = 20.0
_FILES = ("config.json", "model.safetensors")
_BARE = Path(__file__).with_name("bare_loop.py")


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        layers: Layers of the model.
        width: Its hidden size.
        length: Tokens of a sample.
        batch_size: Samples of a batch.
        batches: Batches of a turn. The first one does not count.
        turns: Turns of each loop. The first one does not count.
    """

    layers: int
    width: int
    length: int
    batch_size: int
    batches: int
    turns: int


FULL = Scale(layers=4, width=128, length=64, batch_size=8, batches=20, turns=16)
SMALL = Scale(layers=1, width=16, length=8, batch_size=2, batches=3, turns=2)


def run(scale: Scale) -> list[Figure]:
    """Return the throughputs, and the median of the ratios of neighbouring turns."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files = make_files(directory, scale)
        bridge = Bridge(directory / "work", files, scale.batches, scale.turns)
        bare = [str(_BARE), str(directory / "model"), str(files["slice.safetensors"])]
        bare += [str(scale.batch_size), str(scale.batches)]
        trainer = ["-m", "hypha_trainer.training", "--socket", str(bridge.server_address)]
        trainer += ["--work-dir", str(directory / "work"), "--job", json.dumps(job_for(scale))]
        with bridge, _started("trainer", trainer) as ours, _started("bare loop", bare) as theirs:
            pairs = [_turn(bridge, ours, theirs) for _ in range(scale.turns)]
            ours.wait(_STOP_S)
            bridge.shutdown()
    samples = (scale.batches - 1) * scale.batch_size
    rates = [(samples / ours_s, samples / theirs_s) for ours_s, theirs_s in pairs[1:]]
    return [
        *spread("trainer", [ours for ours, _ in rates], "samples/s"),
        *spread("bare loop", [theirs for _, theirs in rates], "samples/s"),
        Figure("trainer / bare loop", statistics.median(ours / theirs for ours, theirs in rates), "x", at_least=0.97),
    ]


def _turn(bridge: Bridge, ours: "subprocess.Popen[str]", theirs: "subprocess.Popen[str]") -> tuple[float, float]:
    """Return the seconds of a round of the trainer, and of as many batches of the bare loop after it."""
    assert theirs.stdin
    assert theirs.stdout
    ours_s = bridge.wait_for_round(ours)
    theirs.stdin.write("train\n")
    theirs.stdin.flush()
    line = theirs.stdout.readline()
    if not line:
        raise BenchmarkError("the bare loop failed; its output says why")
    bridge.release()
    return ours_s, float(line)


@contextlib.contextmanager
def _started(name: str, arguments: list[str]) -> "Iterator[subprocess.Popen[str]]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if name == "bare loop" else {}
    pipes = pipes or {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.terminate()


def make_files(directory: Path, scale: Scale) -> dict[str, Path]:
    """Write a model and a slice of random text; return the files by their names."""
    torch.manual_seed(0)
    tokens = 512
    sizes = {"n_embd": scale.width, "n_layer": scale.layers, "n_head": 4, "n_positions": scale.length}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, bos_token_id=0, eos_token_id=0, **sizes))
    model.save_pretrained(directory / "model")
    text = torch.randint(tokens, (scale.batch_size * scale.batches, scale.length), dtype=torch.int32)
    path = directory / "slice.safetensors"
    save_file({"input_ids": text, "labels": text.clone()}, path)
    return {"slice.safetensors": path} | {name: directory / "model" / name for name in _FILES}


def job_for(scale: Scale) -> dict[str, Any]:
    """Return the specification of a job over these files."""
    artifact = {"type": "huggingface", "repository": "benchmark/gpt2", "filenames": list(_FILES)}
    peers = {"type": "peers", "peers": [PEER], "strategy": {"type": "All"}}
    config = {
        "model": {"task": "causal-lm", "artifact": artifact, "input-names": ["input_ids", "labels"]},
        "data": {"type": "scheduler", "peer": PEER, "dataset": "text"},
        "updates": peers,
        "results": peers,
        "optimizer": {"learning-rate": 1e-4},
        "batch_size": scale.batch_size,
    }
    executor = {"class": "train", "descriptor": {"name": "benchmark"}, "config": config}
    return {"job_id": "7b0f7b3e-4d0a-4c6b-9e52-0d6b3f7d2a11", "executor": executor}
