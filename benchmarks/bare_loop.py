"""A training loop of accelerate with nothing around it: `bare_loop.py MODEL SLICE BATCH_SIZE BATCHES`.

It trains BATCHES batches for each line on its standard input, and answers with the seconds that they took. The first
batch of each turn does not count, as for the trainer, whose batches are timed from report to report.
"""

import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM


class Rows(torch.utils.data.Dataset[Any]):
    """The samples of a slice."""

    def __init__(self, path: str) -> None:
        self._tensors = load_file(path)

    def __len__(self) -> int:
        return len(self._tensors["input_ids"])

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: tensor[row].long() for name, tensor in self._tensors.items()}


def main() -> None:
    model_folder, path, batch_size, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loader = DataLoader(Rows(path), batch_size=batch_size, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    data: Iterator[dict[str, torch.Tensor]] = chain.from_iterable(repeat(loader))
    for _ in sys.stdin:
        began = time.monotonic()
        for number in range(batches):
            batch = next(data)
            optimizer.zero_grad()
            with accelerator.autocast():
                loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            if number == 0:
                loss.item()  # waits for the device
                began = time.monotonic()
        loss.item()
        print(time.monotonic() - began, flush=True)


if __name__ == "__main__":
    main()
