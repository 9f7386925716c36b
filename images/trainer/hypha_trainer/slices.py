"""Training data: fetch slices ahead, cut them into batches, preprocess these and copy them to the device.

A slice is a SafeTensors file of tensors whose first dimension counts the samples. All of this runs in threads of its
own. The training only calls `Batches.next`.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from hypha_executor.bridge import Bridge, Reference
from hypha_executor.errors import ExecutorError, JobError
from hypha_trainer.processes import Processes

Tensors = dict[str, torch.Tensor]
T = TypeVar("T")

SLICES_AHEAD = 1
BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch, on the device, and the samples in the complete batch."""

    inputs: Tensors
    samples: int
    share: float
    """The fraction of the batch's samples that this process has."""
    tokens: int = 0
    """Those in the complete batch, estimated from this process's share; 0 if it holds no text."""

    def parts(self, count: int) -> list[tuple[Tensors, float]]:
        """Cut this process's samples into parts; return the inputs of each, and its share of these samples."""
        rows = length(self.inputs)
        edges = [rows * number // count for number in range(count + 1)]
        return [
            ({name: tensor[first:last] for name, tensor in self.inputs.items()}, (last - first) / rows)
            for first, last in pairwise(edges)
        ]


def fetch_slices(bridge: Bridge, reference: Reference) -> Iterator[Path]:
    """Fetch slice after slice without end, and rename each.

    The bridge may reuse a name for its next slice while this one is still being read.
    """
    number = 0
    while True:
        for fetched in bridge.fetch(reference):
            path = fetched.with_name(f"slice-{number}")  # with a suffix it would pass for the model's weights
            fetched.rename(path)
            number += 1
            yield path


def read_slice(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Tensors:
    """Return the tensors `required` of a slice, and those of `optional` that it has, memory-mapped.

    Raises:
        JobError: The slice lacks a tensor, or its tensors differ in their number of samples.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = set(file.keys())
            if missing := [name for name in required if name not in names]:
                raise JobError(f"a slice has no tensors {missing}, only {sorted(names)}; correct the job's input-names")
            tensors = {name: file.get_tensor(name) for name in (*required, *names.intersection(optional))}
    except (SafetensorError, OSError) as error:
        raise ExecutorError(f"a slice is not a complete SafeTensors file ({error})") from None
    lengths = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in tensors.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise JobError(
            f"the tensors of a slice must have the same number of samples, at least one; they have {lengths}"
        )
    return tensors


def cut(slices: Iterator[Tensors], batch_size: int) -> Iterator[Tensors]:
    """Yield batches of exactly `batch_size` samples, which may span slices.

    If the next slice's samples have another shape (padded to another length), the rest of a slice is a smaller batch.
    """
    rest: Tensors = {}
    for tensors in slices:
        if rest and not _match(rest, tensors):
            yield rest
            rest = {}
        start, size = 0, length(tensors)
        if rest:
            start = min(batch_size - length(rest), size)
            rest = {name: torch.cat([rest[name], tensor[:start]]) for name, tensor in tensors.items()}
            if length(rest) < batch_size:
                continue
            yield rest
        end = start + (size - start) // batch_size * batch_size
        for row in range(start, end, batch_size):
            yield {name: tensor[row : row + batch_size] for name, tensor in tensors.items()}
        rest = {name: tensor[end:] for name, tensor in tensors.items()} if end < size else {}


def length(tensors: Tensors) -> int:
    """Return the number of samples."""
    return len(next(iter(tensors.values())))


def _match(one: Tensors, other: Tensors) -> bool:
    return all(one[name].shape[1:] == other[name].shape[1:] and one[name].dtype == other[name].dtype for name in one)


def count_tokens(inputs: Tensors) -> int:
    """Return the number of tokens without padding; 0 if the inputs hold no text."""
    for name in ("attention_mask", "input_ids"):
        if "input_ids" in inputs and name in inputs:
            return int((inputs[name] != 0).sum()) if name == "attention_mask" else inputs[name].numel()
    return 0


class Batches:
    """The batches of this process, which threads prepare ahead.

    Only the main process fetches slices. The others open the same files.
    """

    def __init__(
        self,
        fetched: Iterator[Path],
        *,
        required: tuple[str, ...],
        optional: tuple[str, ...],
        prepare: Callable[[Tensors], Tensors],
        batch_size: int,
        processes: Processes,
        device: torch.device,
    ):
        self._names = required, optional
        self._prepare = prepare
        self._batch_size = batch_size
        self._processes = processes
        self._device = device
        self._paths: queue.Queue[Path | Exception] = queue.Queue(maxsize=SLICES_AHEAD)
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=BATCHES_AHEAD)
        if processes.main:
            _start("slices", lambda: _pour(fetched, self._paths))
        _start("batches", lambda: _pour(self._batches(), self._ready))

    def next(self) -> Batch:
        """Return the next batch; raise the error that occurred while it was fetched or prepared."""
        return _take(self._ready)

    def _batches(self) -> Iterator[Batch]:
        pin = self._device.type == "cuda"
        for rows in cut(self._slices(), self._batch_size):
            samples = length(rows)
            first, last = self._processes.rows(samples)
            if samples < self._processes.data_ranks:
                continue  # the rest of a slice, too small for all processes
            inputs = self._prepare({name: tensor[first:last] for name, tensor in rows.items()})
            tokens = count_tokens(inputs)
            if pin:
                inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
            inputs = {name: tensor.to(self._device, non_blocking=pin) for name, tensor in inputs.items()}
            share = (last - first) / samples
            yield Batch(inputs, samples, share, round(tokens / share))

    def _slices(self) -> Iterator[Tensors]:
        while True:
            path = self._processes.share_data(lambda: _take(self._paths))
            tensors = read_slice(path, *self._names)
            self._processes.all_have_data()
            if self._processes.main:
                path.unlink()  # the memory map keeps the bytes
            yield tensors


def ahead(source: Iterator[T], count: int, name: str) -> Iterator[T]:
    """Yield the items of `source`, of which a thread makes up to `count` ahead. Raise the error that it raises."""
    items: queue.Queue[T | Exception] = queue.Queue(maxsize=count)
    _start(name, lambda: _pour(source, items))
    while True:
        try:
            item = _take(items)
        except _EndError:
            return
        yield item


class _EndError(Exception):
    """There are no more items."""


def _pour(source: Iterator[T], sink: "queue.Queue[T | Exception]") -> None:
    try:
        for item in source:
            sink.put(item)
        sink.put(_EndError())
    except Exception as error:  # _take raises it
        sink.put(error)


def _take(source: "queue.Queue[T | Exception]") -> T:
    item = source.get()
    if isinstance(item, Exception):
        raise item
    return item


def _start(name: str, target: Callable[[], None]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()
