"""`python -m e2e.digits prepare DIRECTORY`, `... judge DIRECTORY UPDATES`: the demo's model, data and judgement.

It is a program of its own, because importing torch takes long.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hypha_devnet.demo.model import judge, prepare
from hypha_devnet.demo.models import DIGITS
from hypha_devnet.demo.settings import Files


def trained(files: Files, updates: Path, output: Path) -> Path:
    """Write the trained model, which is the sum of the untrained weights and the updates."""
    shutil.copytree(files.untrained, output, dirs_exist_ok=True)
    weights = load_file(output / "model.safetensors")
    for path in sorted(updates.glob("*.safetensors")):
        for name, update in load_file(path).items():
            weights[name] += update
    save_file(weights, output / "model.safetensors", {"format": "pt"})
    return output


def main(what: str, directory: Path, updates: Path | None = None) -> None:
    """Prepare or judge; report the outcome as a line of JSON."""
    torch.set_num_threads(1)
    files = Files(directory)
    if what == "prepare":
        prepared = prepare(files)
        print(json.dumps({"event": "prepared", "train": prepared.train, "held_out": prepared.held_out}), flush=True)
    elif updates is not None:
        model = trained(files, updates, updates.with_name(f"{updates.name}-model"))
        print(json.dumps({"event": "judged", "accuracy": judge(DIGITS, model)[0]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
