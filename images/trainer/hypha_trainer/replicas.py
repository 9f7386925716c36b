"""The model's weights as whole tensors, however accelerate has spread them over the processes."""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.distributed as dist

from hypha_trainer.weights import Tensors


class Weights(Protocol):
    """Whole weights out of the model and into it. Every process calls every method; only the main one has the tensors."""

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The current weights, by name, in the order of `names`; nothing in the other processes."""

    def load(self, tensors: Tensors) -> None:
        """Puts `tensors` (empty in the other processes) into the model."""


def unique_names(model: torch.nn.Module) -> dict[str, str]:
    """What the model's state is exchanged as: every name, and the one that stands for it where weights are tied.

    The first name in alphabetical order stands for the others, as safetensors' `save_model` chooses it.
    """
    chosen: dict[tuple[object, ...], str] = {}
    state = model.state_dict()
    for name in sorted(state):
        chosen.setdefault(_place(name, state[name]), name)
    return {name: chosen[_place(name, tensor)] for name, tensor in state.items()}


def _place(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    if tensor.device.type == "meta" or not tensor.numel():
        return (name,)
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


class Replicated:
    """Every process holds the whole model: one process alone, or data parallel."""

    def __init__(self, model: torch.nn.Module, names: dict[str, str], *, main: bool, alone: bool):
        self._model = model
        self._names = [name for name, stands_for in names.items() if name == stands_for]
        self._main = main
        self._alone = alone

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Weights`."""
        if self._main:
            state = self._model.state_dict()
            yield from ((name, state[name]) for name in self._names)

    def load(self, tensors: Tensors) -> None:
        """See `Weights`."""
        state = self._model.state_dict()
        for name in self._names:
            if self._main:
                state[name].copy_(tensors[name])
            if not self._alone:
                dist.broadcast(state[name], src=0)


class Sharded:
    """Every process holds a part of each tensor: FSDP or tensor parallel."""

    def __init__(self, model: torch.nn.Module, names: dict[str, str], *, main: bool):
        self._model = model
        self._names = names
        self._main = main

    def whole(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Weights`."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(self._model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if self._main:
            yield from ((name, state[name]) for name, stands_for in self._names.items() if name == stands_for)

    def load(self, tensors: Tensors) -> None:
        """See `Weights`."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        state = {name: tensors[stands_for] for name, stands_for in self._names.items()} if self._main else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(self._model, state, options=options)
