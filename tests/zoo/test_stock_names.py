"""Names and shapes of what both trainers exchange, with the stock trainer's Python in HYPHA_STOCK_PYTHON."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from hypha_trainer.models import load_model
from hypha_trainer.replicas import exchanged_groups
from zoo.table import FAMILIES

STOCK = os.environ.get("HYPHA_STOCK_PYTHON")
SCRIPT = Path(__file__).with_name("stock_names.py")

KNOWN = {
    "swin-image-classification": "transformers 4 keeps an index, which version 5 computes, among the weights",
    "llava-image-text-to-text": "transformers 4 names the weights in memory differently from those of its checkpoints",
}
"""Families that differ, with the reason; a job cannot mix trainers for them."""

pytestmark = [
    pytest.mark.skipif(STOCK is None, reason="HYPHA_STOCK_PYTHON names no Python with hypha.accelerate_executor"),
    pytest.mark.timeout(900),
]


def exchanged(folder: Path, task: str) -> dict[str, list[int]]:
    """Return the shapes of what our trainer exchanges."""
    model = load_model(task, folder, trust_remote_code=True, placement={})
    state = model.state_dict()
    found: dict[str, list[int]] = {}
    for group in exchanged_groups(model):
        tensors = group.to_wire({name: state[name] for name in group.shapes})
        found |= {name: list(tensor.shape) for name, tensor in tensors.items()}
    return found


def test_both_trainers_exchange_the_same_tensors_of_every_family_that_both_know(tmp_path: Path) -> None:
    assert STOCK is not None
    folders = {family: tmp_path / str(family) for family in FAMILIES}
    for family, folder in folders.items():
        family.write(folder)
    lines = "".join(json.dumps([str(folder), family.task]) + "\n" for family, folder in folders.items())
    done = subprocess.run([STOCK, SCRIPT], input=lines, capture_output=True, text=True, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in ("{", '"')]
    assert len(answers) == len(folders), done.stderr
    unknown, different = {}, {}
    for (family, folder), stock in zip(folders.items(), answers, strict=True):
        if isinstance(stock, str):
            unknown[str(family)] = stock
        elif (ours := exchanged(folder, family.task)) != stock:
            names = sorted(set(ours) ^ set(stock)) or [name for name in ours if ours[name] != stock[name]]
            different[str(family)] = names[:4]
    report = "".join(f"the stock trainer cannot load {name}: {reason}\n" for name, reason in unknown.items())
    report += "".join(f"{name} differs in {names}\n" for name, names in different.items())
    print(report)
    assert different.keys() == KNOWN.keys(), report
