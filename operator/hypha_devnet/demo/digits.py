"""scikit-learn's handwritten digits, and a ConvNext that learns to read them."""

from pathlib import Path

import torch
from transformers import AutoModelForImageClassification, ConvNextConfig, ConvNextForImageClassification

from hypha_devnet.demo import digits_data

Tensors = dict[str, torch.Tensor]


def samples() -> tuple[Tensors, Tensors]:
    """Return the images (n, 1, 8, 8) from -1 to 1 and their digits: the shuffled training set, and the held-out one."""
    train, held_out = digits_data.samples()
    return _tensors(train), _tensors(held_out)


def _tensors(arrays: digits_data.Arrays) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def rows(inputs: Tensors) -> Tensors:
    """Return inputs as slices hold them."""
    return inputs


def save_untrained(folder: Path) -> None:
    """Write the untrained model."""
    config = ConvNextConfig(**digits_data.NETWORK)
    config.num_labels = digits_data.LABELS
    ConvNextForImageClassification(config).save_pretrained(folder)


def load(folder: Path) -> torch.nn.Module:
    """Load a saved model."""
    model: torch.nn.Module = AutoModelForImageClassification.from_pretrained(folder)
    return model


def baseline(train: Tensors, held_out: Tensors) -> float:
    """Return the share of held-out digits that are the most frequent one of the training set."""
    return float((held_out["labels"] == train["labels"].mode().values).float().mean())


def score(model: torch.nn.Module, held_out: Tensors) -> float:
    """Return the share of the held-out digits that the model reads right."""
    with torch.no_grad():
        found = model(held_out["pixel_values"]).logits.argmax(dim=1)
    return float((found == held_out["labels"]).float().mean())


def example(model: torch.nn.Module) -> str:  # noqa: ARG001 - a classifier writes nothing
    """Return nothing, because a classifier writes nothing."""
    return ""
