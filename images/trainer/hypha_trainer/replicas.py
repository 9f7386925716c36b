"""The model's weights as whole tensors, however accelerate has spread them over the processes.

Data parallel keeps the whole model in every process; FSDP and tensor parallel keep parts of its tensors (DTensors).
Every process makes every call here, tensor by tensor, so that no process ever holds a second whole model for it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hypha_trainer.naming import Group, groups_of
from hypha_trainer.weights import DTYPE_NAMES, Tensors


def exchanged_groups(model: torch.nn.Module) -> list[Group]:
    """The model's state as it is exchanged: by the checkpoint's names, one for each tensor that others are tied to.

    The first name in alphabetical order stands for the others, as safetensors' `save_model` chooses it. What cannot be
    averaged (masks) stays with each trainer. To be asked before the model is spread over processes.
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
    """Whole weights out of the model and into it.

    Args:
        model: The model as accelerate prepared it, unwrapped.
        groups: What `exchanged_groups` said of it before.
        main: Whether this is the main process, the only one that sees whole tensors.
        alone: Whether there are no other processes.
        device: Where this process computes.
    """

    def __init__(self, model: torch.nn.Module, groups: list[Group], *, main: bool, alone: bool, device: torch.device):
        self._model = model
        self._groups = groups
        self._main = main
        self._alone = alone
        self._device = device

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The current weights by the checkpoint's names; in the other processes nothing, but they must iterate too."""
        state = self._model.state_dict()
        for group in self._groups:
            parts = {name: _gather(state[name], self._device) for name in group.shapes}
            if self._main:
                yield from group.to_wire(parts).items()

    def load(self, tensors: Tensors) -> None:
        """Puts `tensors` (empty in the other processes) into the model."""
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
            whole = torch.empty(here.shape, dtype=here.dtype, device=self._device)
        else:
            whole = tensor.to(self._device, here.dtype)
        if isinstance(here, DTensor):
            part = distribute_tensor(whole, here.device_mesh, here.placements, src_data_rank=0)
            here.to_local().copy_(part.to_local())
        else:
            dist.broadcast(whole, src=0)
            here.copy_(whole)


def _gather(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    on_device: Any = tensor.to(device)  # parts may be offloaded to the CPU, whose memory nccl cannot reach
    whole: torch.Tensor = on_device.full_tensor()
    return whole
