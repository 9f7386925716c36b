"""Training data: fetch slices ahead, cut them into batches, preprocess these and copy them to the device.

A slice is a SafeTensors file of tensors whose first dimension counts the samples. All of this runs in threads of its
own. The training only calls `Batches.next`.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


def fetch_slices(bridge: Bridge, reference: Reference) -> Iterator[Path]:
    """Fetch slice after slice without end, and rename each.

    The bridge may reuse a name for its next slice while this one is still being read.
    """
    number = 0
    while True:
        for fetched in bridge.fetch(reference):
            path = fetched.with_name(f"slice-{number}.safetensors")
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
        start, size = 0, _length(tensors)
        if rest:
            start = min(batch_size - _length(rest), size)
            rest = {name: torch.cat([rest[name], tensor[:start]]) for name, tensor in tensors.items()}
            if _length(rest) < batch_size:
                continue
            yield rest
        end = start + (size - start) // batch_size * batch_size
        for row in range(start, end, batch_size):
            yield {name: tensor[row : row + batch_size] for name, tensor in tensors.items()}
        rest = {name: tensor[end:] for name, tensor in tensors.items()} if end < size else {}


def _length(tensors: Tensors) -> int:
    return len(next(iter(tensors.values())))


def _match(one: Tensors, other: Tensors) -> bool:
    return all(one[name].shape[1:] == other[name].shape[1:] and one[name].dtype == other[name].dtype for name in one)


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
            samples = _length(rows)
            first, last = self._processes.rows(samples)
            if samples < self._processes.data_ranks:
                continue  # the rest of a slice, too small for all processes
            inputs = self._prepare({name: tensor[first:last] for name, tensor in rows.items()})
            if pin:
                inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
            inputs = {name: tensor.to(self._device, non_blocking=pin) for name, tensor in inputs.items()}
            yield Batch(inputs, samples, (last - first) / samples)

    def _slices(self) -> Iterator[Tensors]:
        while True:
            path = self._processes.share_data(lambda: _take(self._paths))
            tensors = read_slice(path, *self._names)
            self._processes.all_have_data()
            if self._processes.main:
                path.unlink()  # the memory map keeps the bytes
            yield tensors


def _pour(source: Iterator[T], sink: "queue.Queue[T | Exception]") -> None:
    try:
        for item in source:
            sink.put(item)
    except Exception as error:  # _take raises it
        sink.put(error)


def _take(source: "queue.Queue[T | Exception]") -> T:
    item = source.get()
    if isinstance(item, Exception):
        raise item
    return item


def _start(name: str, target: Callable[[], None]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()
