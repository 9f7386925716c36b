"""Pseudo-gradients and updates: SafeTensors files, calculated from and added to the global weights.

Files are written tensor by tensor, so that the global weights are the only copy of the model.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hypha_executor.errors import ExecutorError
from hypha_executor.kinds import NEVER_NEGATIVE, kind_of
from hypha_executor.labels import parse_labels
from hypha_executor.safetensors import write_file

Tensors = dict[str, torch.Tensor]
Named = Iterable[tuple[str, torch.Tensor]]

DTYPE_NAMES = {  # numbers that can be averaged
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def difference(local: Named, start: Tensors, untrained: Set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the pseudo-gradient, tensor by tensor: the local weights minus those at the start of the round.

    All tensors share memory, so each is valid only until the next one. An element of an untrained tensor that was not
    finite at the start (a mask, an observer without data) has no difference, and `start` takes its local value.

    Raises:
        ExecutorError: The model has diverged.
    """
    sizes: dict[torch.dtype, int] = {}
    for tensor in start.values():
        sizes[tensor.dtype] = max(sizes.get(tensor.dtype, 0), tensor.numel())
    scratch = {dtype: torch.empty(size, dtype=dtype) for dtype, size in sizes.items()}
    for name, tensor in local:
        before = start[name]
        delta = scratch[before.dtype][: before.numel()].view(before.shape)
        after = tensor.detach().to("cpu", before.dtype)
        unset = None if name not in untrained or is_finite(before) else ~torch.isfinite(before)
        if unset is not None:
            before[unset] = after[unset]
        torch.sub(after, before, out=delta)
        if unset is not None:
            delta[unset] = 0
        if not is_finite(delta):
            raise ExecutorError(f"{name} is not finite after training: the model diverged; lower the learning rate")
        yield name, delta


def save_tensors(path: Path, tensors: Named, like: Tensors, metadata: Mapping[str, str]) -> None:
    """Write `tensors`, in the order, shapes and dtypes of `like`, to a SafeTensors file."""
    layout = [(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in like.items()]
    write_file(path, layout, (_bytes_of(tensor) for _, tensor in tensors), metadata)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    if not tensor.numel():
        return memoryview(b"")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def add_update(weights: Tensors, path: Path, own: Path, untrained: Set[str]) -> None:
    """Add the update in `path` to `weights`, in place, completely or not at all.

    The parameter server's momentum must not drive what no optimizer trains. An untrained tensor takes the update only
    if that is the mean of the trainers' changes. Otherwise it takes the change that this trainer sent, so that it
    becomes what it was after the round's training.

    Args:
        weights: The global weights at the start of the round.
        path: The update.
        own: The pseudo-gradient that this trainer sent.
        untrained: The tensors that no optimizer trains.

    Raises:
        ExecutorError: The update does not fit the weights or is not finite.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            means = parse_labels(file.metadata() or {}).statistics == "mean"
            update = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a handle, not a dict
    except (SafetensorError, OSError) as error:
        raise ExecutorError(f"{path.name} is not a complete SafeTensors file ({error})") from None
    unknown = sorted(set(update) - set(weights))
    for name in untrained & update.keys():
        if not means or kind_of(name, DTYPE_NAMES[weights[name].dtype]) == "weights":
            del update[name]
    _check(weights, update, unknown, untrained)
    with torch.no_grad(), safe_open(own, framework="pt", device="cpu") as sent:
        for name, tensor in weights.items():
            if name not in untrained:
                tensor.add_(update[name].to(tensor.dtype))
            else:
                tensor.copy_(_merged(name, tensor, update.get(name), tensor + sent.get_tensor(name)))


def _merged(name: str, start: torch.Tensor, mean: torch.Tensor | None, own: torch.Tensor) -> torch.Tensor:
    """Return the merged values of an untrained tensor: its own ones where a mean would make variances negative."""
    if mean is None:
        return own
    merged = start + mean.to(start.dtype)
    if name.rpartition(".")[2] not in NEVER_NEGATIVE:
        return merged
    return torch.where((merged < 0) & (start >= 0) & (own >= 0), own, merged)


def _check(weights: Tensors, update: Tensors, unknown: list[str], untrained: Set[str]) -> None:
    missing = sorted(weights.keys() - update.keys() - untrained)
    if missing or unknown:
        raise ExecutorError(f"the update is for another model: it lacks {missing[:3]} and adds {unknown[:3]}")
    for name, tensor in update.items():
        if tensor.shape != weights[name].shape:
            raise ExecutorError(
                f"the update's {name} has shape {list(tensor.shape)}, the model's {list(weights[name].shape)}"
            )
        if tensor.is_floating_point() != weights[name].is_floating_point():
            raise ExecutorError(f"the update's {name} is {tensor.dtype}, the model's {weights[name].dtype}")
        if not is_finite(tensor):
            raise ExecutorError(f"the update's {name} is not finite; a trainer of this job diverged")


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite, in one pass and without a mask."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))
