"""Run by the stock trainer's Python: print the names and shapes under which it keeps each model, as a line of JSON.

Standard input has a line of JSON for each model: its folder and its model type. A model that the stock trainer cannot
load has a text in place of its tensors.
"""

import json
import sys
import tempfile
from pathlib import Path

from hypha.accelerate_executor.model import get_model
from safetensors import safe_open
from safetensors.torch import save_model

_TASKS = {"seq2-seq-lm": "seq-2-seq-lm", "speech-seq2-seq": "speech-seq-2-seq", "vison2-seq": "vision-2-seq"}


def _tensors(folder: str, task: str) -> object:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weights")
        try:
            save_model(get_model(folder, _TASKS.get(task, task)), str(path))
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:200]
        with safe_open(path, framework="pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping


for line in sys.stdin:
    print("\n" + json.dumps(_tensors(*json.loads(line))), flush=True)
