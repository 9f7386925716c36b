"""The demo's data and model. They have a process of their own, because importing torch takes long.

`python -m hypha_devnet.demo.model DIRECTORY` writes the data and the untrained model, trains the same model in one
process for comparison, and then judges each model directory that it reads from standard input, one a line. It reports
each step as an event on standard output.
"""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageClassification, ConvNextConfig, ConvNextForImageClassification

from hypha_devnet.demo.settings import SETTINGS, Files
from hypha_devnet.events import Events

_REPORT_EVERY: Final = 10
_COURTESY: Final = 10


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 8, 8) from -1 to 1, and their digits."""

    pixel_values: torch.Tensor
    labels: torch.Tensor


def digits() -> tuple[Split, Split]:
    """Return the handwritten digits of scikit-learn: the shuffled ones for training, and the held-out ones."""
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=SETTINGS.held_out, stratify=labels, random_state=SETTINGS.seed)
    train_images, held_images, train_labels, held_labels = (torch.from_numpy(part) for part in parts)
    return _split(train_images, train_labels), _split(held_images, held_labels)


def _split(images: torch.Tensor, labels: torch.Tensor) -> Split:
    return Split((images / 8 - 1).float().reshape(-1, 1, 8, 8), labels.long())


def prepare(files: Files) -> tuple[int, int]:
    """Write the slices, and the untrained model into the hub; return the numbers of training and held-out images."""
    train, held_out = digits()
    files.dataset.mkdir(parents=True)
    chunks = zip(train.pixel_values.chunk(SETTINGS.slices), train.labels.chunk(SETTINGS.slices), strict=True)
    for number, (pixel_values, labels) in enumerate(chunks):
        tensors = {"pixel_values": pixel_values.contiguous(), "labels": labels.contiguous()}
        save_file(tensors, files.dataset / f"slice-{number:04}.safetensors")
    torch.manual_seed(SETTINGS.seed)
    config = ConvNextConfig(
        num_channels=1,
        image_size=8,
        patch_size=2,
        num_stages=2,
        hidden_sizes=[48, 96],
        depths=[1, 2],
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
    )
    config.num_labels = 10
    ConvNextForImageClassification(config).save_pretrained(files.model)
    return len(train.labels), len(held_out.labels)


def train_alone(files: Files) -> Iterator[tuple[int, float]]:
    """Train the model in this process on as many samples as all trainers see; yield each batch's number and loss."""
    model = AutoModelForImageClassification.from_pretrained(files.model).train()
    train, _ = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.learning_rate)
    count = SETTINGS.rounds * SETTINGS.samples_per_round // SETTINGS.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, SETTINGS.steps_alone))
    size = SETTINGS.batch_size
    for batch in range(count):
        chosen = torch.arange(batch * size, (batch + 1) * size) % len(train.labels)
        loss = cross_entropy(model(train.pixel_values[chosen]).logits, train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        yield batch + 1, loss.item()
    model.save_pretrained(files.alone)


def _cosine(step: int, steps: int) -> float:
    """Return the factor of the learning rate under the trainers' schedule `cosine-with-warmup`."""
    if step < SETTINGS.warmup_steps:
        return step / SETTINGS.warmup_steps
    progress = min(1.0, (step - SETTINGS.warmup_steps) / (steps - SETTINGS.warmup_steps))
    return 0.5 * (1 + math.cos(math.pi * progress))


def accuracy(model_directory: Path) -> float:
    """Return the share of the held-out digits that a saved model reads right."""
    _, held_out = digits()
    model = AutoModelForImageClassification.from_pretrained(model_directory).eval()
    with torch.no_grad():
        found = model(held_out.pixel_values).logits.argmax(dim=1)
    return float((found == held_out.labels).float().mean())


def main(directory: Path) -> None:
    """Prepare, train alone and judge."""
    events = Events(sys.stdout)
    torch.set_num_threads(1)
    files = Files(directory)
    train, held_out = prepare(files)
    events.emit("prepared", train=train, held_out=held_out, slices=SETTINGS.slices)
    os.nice(_COURTESY)  # the network has priority
    gathered: list[float] = []
    for batch, loss in train_alone(files):
        gathered.append(loss)
        if len(gathered) == _REPORT_EVERY:
            samples = batch * SETTINGS.batch_size
            events.emit("alone", samples=samples, loss=sum(gathered) / len(gathered))
            gathered.clear()
    events.emit("trained_alone", accuracy=accuracy(files.alone))
    for line in sys.stdin:
        model = Path(line.strip())
        events.emit("judged", model=str(model), accuracy=accuracy(model))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
