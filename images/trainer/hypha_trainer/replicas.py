"""The model's weights as complete tensors, however accelerate has distributed them over the processes.

Data parallelism keeps the complete model in every process. FSDP and tensor parallelism keep parts of its tensors there
(DTensors). Every process makes every call here, tensor by tensor, so that none ever holds a second complete model.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hypha_trainer.naming import Group, groups_of
from hypha_trainer.weights import DTYPE_NAMES, Tensors


def exchanged_groups(model: torch.nn.Module) -> list[Group]:
    """Return the model's state as trainers exchange it: by the checkpoint's names, each set of tied tensors once.

    Tied tensors go by the first name in alphabetical order, as in safetensors' `save_model`. Tensors that cannot be
    averaged (masks) are left out. Call this before the model is distributed over processes.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype in DTYPE_NAMES}
    groups = sorted(groups_of(model, state), key=lambda group: group.names)
    chosen: dict[tuple[object, ...], Group] = {}
    for group in groups:
        chosen.setdefault(tuple(_place(name, state[name]) for name in group.shapes), group)
    return list(chosen.values())


def _place(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    if isinstance(tensor, DTensor):
        tensor = tensor.to_local()
    if tensor.device.type == "meta" or not tensor.numel():
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


class Weights:
    """Reads complete weights from the model and writes them to it.

    Args:
        model: The model that accelerate has prepared, unwrapped.
        groups: The result of `exchanged_groups`.
        main: Whether this is the main process, the only one that gets complete tensors.
        alone: Whether there are no other processes.
        device: The device of this process.

    Attributes:
        untrained: The tensors, by the checkpoint's names, that no optimizer trains: buffers and frozen parameters.
    """

    def __init__(self, model: torch.nn.Module, groups: list[Group], *, main: bool, alone: bool, device: torch.device):
        self._model = model
        self._groups = groups
        self._main = main
        self._alone = alone
        self._device = device
        # Not `named_parameters`: wrappers that recompute activations add to its names.
        trained = {name for name, tensor in model.state_dict(keep_vars=True).items() if tensor.requires_grad}
        self.untrained = frozenset(name for group in groups if trained.isdisjoint(group.shapes) for name in group.names)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the current weights by the checkpoint's names. The other processes get none, but must iterate too."""
        state = self._model.state_dict()
        for group in self._groups:
            parts = {name: _gather(state[name], self._device) for name in group.shapes}
            if self._main:
                yield from group.to_wire(parts).items()

    def load(self, tensors: Tensors) -> None:
        """Write `tensors` (empty in the other processes) to the model."""
        state = self._model.state_dict()
        with torch.no_grad():
            for group in self._groups:
                parts = group.to_model(tensors) if self._main else {}
                for name in group.shapes:
                    self._put(parts.get(name), state[name])

    def _put(self, tensor: torch.Tensor | None, here: torch.Tensor) -> None:
        if self._alone and tensor is not None:
            here.copy_(tensor)
            return
        if tensor is None:
            complete = torch.empty(here.shape, dtype=here.dtype, device=self._device)
        else:
            complete = tensor.to(self._device, here.dtype)
        if isinstance(here, DTensor):
            part = distribute_tensor(complete, here.device_mesh, here.placements, src_data_rank=0)
            here.to_local().copy_(part.to_local())
        else:
            dist.broadcast(complete, src=0)
            here.copy_(complete)


def _gather(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    on_device: Any = tensor.to(device)  # parts may be offloaded to the CPU, where nccl cannot read them
    return on_device.full_tensor()  # type: ignore[no-any-return]
