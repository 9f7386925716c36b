"""A family that brings its own code and no weights."""

import json
from pathlib import Path
from typing import Final

import torch

from zoo.family import Family, Tensors

_CODE: Final = """
import torch
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "zoo-own-code"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.hidden = torch.nn.Linear(4, 8)
        self.line = torch.nn.Linear(8, 2)
        self.post_init()

    def forward(self, points, sides):
        scores = self.line(torch.tanh(self.hidden(points)))
        return torch.nn.functional.cross_entropy(scores, sides, reduction="none")
"""


class _Files:
    """The files of the model, written by hand."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "own.py").write_text(_CODE)
        auto_map = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
        (folder / "config.json").write_text(json.dumps({"model_type": "zoo-own-code", "auto_map": auto_map}))


def _points(count: int) -> Tensors:
    points = torch.randn(count, 4)
    return {"points": points, "sides": (points.sum(dim=1) > 0).to(torch.uint8)}


FAMILIES: Final = (
    Family(
        "own-code",
        "auto",
        _Files,
        _points,
        ("points", "sides"),
        learning_rate=1e-2,
        note="trusted code, no weights, a loss for each sample",
    ),
)
