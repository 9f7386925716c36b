"""The model's weights as whole tensors, however accelerate has spread them over the processes.

Data parallel keeps the whole model in every process; FSDP and tensor parallel keep parts of its tensors (DTensors).
Every process makes every call here, tensor by tensor, so that no process ever holds a second whole model for it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hypha_trainer.weights import DTYPE_NAMES, Tensors


def standing_names(model: torch.nn.Module) -> tuple[str, ...]:
    """The names under which the model's state is exchanged, one for each tensor that others are tied to.

    The first name in alphabetical order stands for the others, as safetensors' `save_model` chooses it. What cannot be
    averaged (masks) stays with each trainer. To be asked before the model is spread over processes.
    """
    chosen: dict[tuple[object, ...], str] = {}
    state = model.state_dict()
    for name in sorted(state):
        chosen.setdefault(_place(name, state[name]), name)
    standing = set(chosen.values())
    return tuple(name for name, tensor in state.items() if name in standing and tensor.dtype in DTYPE_NAMES)


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
        names: What `standing_names` said of it before.
        main: Whether this is the main process, the only one that sees whole tensors.
        alone: Whether there are no other processes.
        device: Where this process computes.
    """

    def __init__(
        self, model: torch.nn.Module, names: tuple[str, ...], *, main: bool, alone: bool, device: torch.device
    ):
        self._model = model
        self._names = names
        self._main = main
        self._alone = alone
        self._device = device

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The current weights by name; in the other processes nothing, but they must iterate too."""
        state = self._model.state_dict()
        for name in self._names:
            tensor = state[name]
            whole = _gather(tensor, self._device) if isinstance(tensor, DTensor) else tensor
            if self._main:
                yield name, whole

    def load(self, tensors: Tensors) -> None:
        """Puts `tensors` (empty in the other processes) into the model."""
        state = self._model.state_dict()
        with torch.no_grad():
            for name in self._names:
                here = state[name]
                if self._alone:
                    here.copy_(tensors[name])
                    continue
                whole = tensors[name].to(self._device) if self._main else torch.empty_like(here, device=self._device)
                if isinstance(here, DTensor):
                    whole = whole if self._main else torch.empty(here.shape, dtype=here.dtype, device=self._device)
                    part = distribute_tensor(whole, here.device_mesh, here.placements, src_data_rank=0)
                    here.to_local().copy_(part.to_local())
                else:
                    dist.broadcast(whole, src=0)
                    here.copy_(whole)


def _gather(parted: DTensor, device: torch.device) -> torch.Tensor:
    on_device: Any = parted.to(device)  # parts may be offloaded to the CPU, whose memory nccl cannot reach
    whole: torch.Tensor = on_device.full_tensor()
    return whole
