"""The demo's data and model. They have a process of their own, because importing torch takes long.

`python -m hypha_devnet.demo.model NAME ROUNDS DIRECTORY` writes the data and the untrained model, trains the same model
in one process for comparison, and then judges each model directory that it reads from standard input, one a line. It
reports each step as an event on standard output.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, cast

import torch
from safetensors.torch import save_file

from hypha_devnet.demo.models import MODELS, DemoModel, ModelName
from hypha_devnet.demo.settings import Files
from hypha_devnet.events import Events

Tensors = dict[str, torch.Tensor]

_REPORT_EVERY: Final = 10
_COURTESY: Final = 10
_MODULES: Final = {ModelName.DIGITS: "digits", ModelName.CAUSAL_LM: "language"}


class Material(Protocol):
    """A module with the data and the network of a demo model."""

    def samples(self) -> tuple[Tensors, Tensors]:
        """Return the model's inputs for training, shuffled, and for its judgement."""

    def rows(self, inputs: Tensors) -> Tensors:
        """Return inputs as slices hold them."""

    def save_untrained(self, folder: Path) -> None:
        """Write the untrained model, and its preprocessor if it has one."""

    def load(self, folder: Path) -> torch.nn.Module:
        """Load a saved model."""

    def baseline(self, train: Tensors, held_out: Tensors) -> float:
        """Return the score of the simplest guess."""

    def score(self, model: torch.nn.Module, held_out: Tensors) -> float:
        """Return the score of a model."""

    def example(self, model: torch.nn.Module) -> str:
        """Return what the model writes, or nothing if it does not write."""


@dataclass(frozen=True)
class Prepared:
    """The numbers of training and held-out samples, and the score of the simplest guess."""

    train: int
    held_out: int
    baseline: float


def material(model: DemoModel) -> Material:
    """Return the data and the network of a model."""
    return cast("Material", import_module(f"hypha_devnet.demo.{_MODULES[ModelName(model.name)]}"))


def prepare(files: Files) -> Prepared:
    """Write the slices, and the untrained model into the hub."""
    model, source = files.model, material(files.model)
    train, held_out = source.samples()
    _write_slices(source.rows(train), model.slices, files.dataset)
    _write_slices({**source.rows(held_out), "labels": held_out["labels"]}, model.slices, files.held_out)
    torch.manual_seed(model.seed)
    source.save_untrained(files.untrained)
    return Prepared(len(train["labels"]), len(held_out["labels"]), source.baseline(train, held_out))


def _write_slices(rows: Tensors, count: int, directory: Path) -> None:
    directory.mkdir(parents=True)
    parts = {name: tensor.chunk(count) for name, tensor in rows.items()}
    for number in range(count):
        tensors = {name: part[number].contiguous() for name, part in parts.items()}
        save_file(tensors, directory / f"slice-{number:04}.safetensors")


def train_alone(files: Files) -> Iterator[tuple[int, float]]:
    """Train the model in this process on as many samples as all trainers see; yield each batch's number and loss."""
    model, source = files.model, material(files.model)
    network = source.load(files.untrained).train()
    train, _ = source.samples()
    optimizer = torch.optim.AdamW(network.parameters(), lr=model.learning_rate)
    steps = model.steps(model.batch_alone)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, model.warmup_steps, steps))
    size = model.batch_alone
    for batch in range(model.total_samples // size):
        chosen = torch.arange(batch * size, (batch + 1) * size) % len(train["labels"])
        loss = network(**{name: tensor[chosen] for name, tensor in train.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield batch + 1, loss.item()
    network.save_pretrained(files.alone)  # type: ignore[operator]


def _cosine(step: int, warmup: int, steps: int) -> float:
    """Return the factor of the learning rate under the trainers' schedule `cosine-with-warmup`."""
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / (steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


def judge(model: DemoModel, folder: Path) -> tuple[float, str]:
    """Return the score of a saved model on the held-out samples, and what it writes."""
    source = material(model)
    network = source.load(folder).eval()
    return source.score(network, source.samples()[1]), source.example(network)


def main(model: DemoModel, directory: Path) -> None:
    """Prepare, train alone and judge."""
    events = Events(sys.stdout)
    torch.set_num_threads(1)
    files = Files(directory, model)
    prepared = prepare(files)
    events.emit(
        "prepared",
        train=prepared.train,
        held_out=prepared.held_out,
        baseline=prepared.baseline,
        slices=model.slices,
    )
    os.nice(_COURTESY)  # the network has priority
    gathered: list[float] = []
    for batch, loss in train_alone(files):
        gathered.append(loss)
        if len(gathered) == _REPORT_EVERY:
            events.emit("alone", samples=batch * model.batch_alone, loss=sum(gathered) / len(gathered))
            gathered.clear()
    events.emit("trained_alone", score=judge(model, files.alone)[0])
    for line in sys.stdin:
        folder = Path(line.strip())
        score, example = judge(model, folder)
        events.emit("judged", model=str(folder), score=score, example=example)


if __name__ == "__main__":
    main(replace(MODELS[ModelName(sys.argv[1])], rounds=int(sys.argv[2])), Path(sys.argv[3]))
