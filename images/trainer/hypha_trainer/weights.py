"""Pseudo-gradients and updates: SafeTensors files, calculated from and added to the global weights.

Files are written tensor by tensor, so that the global weights are the only copy of the model.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hypha_executor.errors import ExecutorError
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


def difference(local: Named, start: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the pseudo-gradient, tensor by tensor: the local weights minus those at the start of the round.

    All tensors share memory, so each is valid only until the next one.

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
        torch.sub(tensor.detach().to("cpu", before.dtype), before, out=delta)
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


def add_update(weights: Tensors, path: Path) -> None:
    """Add the update in `path` to `weights`, in place, completely or not at all.

    Integer tensors may be missing, because some parameter servers do not average counters.

    Raises:
        ExecutorError: The update does not fit the weights or is not finite.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            update = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a handle, not a dict
    except (SafetensorError, OSError) as error:
        raise ExecutorError(f"{path.name} is not a complete SafeTensors file ({error})") from None
    _check(weights, update)
    with torch.no_grad():
        for name, tensor in update.items():
            weights[name].add_(tensor.to(weights[name].dtype))


def _check(weights: Tensors, update: Tensors) -> None:
    missing = sorted(name for name, tensor in weights.items() if tensor.is_floating_point() and name not in update)
    unknown = sorted(set(update) - set(weights))
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
