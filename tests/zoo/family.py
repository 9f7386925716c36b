"""A family of models: a tiny one with random weights, and data that it can learn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]

BATCH = 4
"""Samples in a batch of one trainer."""


@dataclass(frozen=True)
class Family:
    """One row of the zoo.

    Attributes:
        name: The model's name in transformers.
        task: The model type, as the Rust nodes write it.
        model: Builds the model with random weights.
        data: Makes this many samples, by the tensors of a slice.
        inputs: The model's inputs.
        preprocessor: The preprocessor's type, its inputs, and what builds it.
        learning_rate: AdamW's.
        note: What is special about it.
        refusal: What the trainer says in place of training, because transformers cannot train such a model.
    """

    name: str
    task: str
    model: Callable[[], Any]
    data: Callable[[int], Tensors]
    inputs: tuple[str, ...]
    preprocessor: tuple[str, tuple[str, ...], Callable[[], Any]] | None = None
    learning_rate: float = 3e-3
    note: str = ""
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.task}"

    def write(self, folder: Path) -> None:
        """Write the model and its preprocessor, as transformers saves them."""
        torch.manual_seed(0)
        self.model().save_pretrained(folder)
        if self.preprocessor:
            self.preprocessor[2]().save_pretrained(folder)
