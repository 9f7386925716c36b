"""From the tensors of a batch to the arguments of a model."""

import inspect
from collections import defaultdict
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]


def arrange_arguments(model: torch.nn.Module) -> None:
    """Let a model take the tensors of a batch as they are, and compute its loss.

    Inputs such as `labels.boxes` and `labels.class_labels` become one argument, `labels`: a list with a dict for each
    sample. Entries whose class is negative are padding, and are dropped. Models that compute a loss only on request,
    as contrastive ones do, are requested to in training mode.
    """
    requested = loss_request(model)

    def arrange(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        return args, (requested if module.training else {}) | nest(kwargs)

    model.register_forward_pre_hook(arrange, with_kwargs=True)


def loss_request(model: torch.nn.Module) -> dict[str, Any]:
    """Return the argument by which a model computes its loss, if it needs one."""
    return {"return_loss": True} if "return_loss" in inspect.signature(model.forward).parameters else {}


def nest(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace the tensors whose names have a dot by a list, under what is before the dot, with a dict per sample."""
    nested: dict[str, Tensors] = defaultdict(dict)
    for name in [name for name in arguments if "." in name]:
        outer, _, inner = name.partition(".")
        nested[outer][inner] = arguments[name]
    plain = {name: value for name, value in arguments.items() if "." not in name}
    return plain | {outer: _samples(tensors) for outer, tensors in nested.items()}


def _samples(tensors: Tensors) -> list[Tensors]:
    samples = [dict(zip(tensors, rows, strict=True)) for rows in zip(*tensors.values(), strict=True)]
    return [_without_padding(sample) for sample in samples]


def _without_padding(sample: Tensors) -> Tensors:
    classes = sample.get("class_labels")
    return sample if classes is None else {name: tensor[classes >= 0] for name, tensor in sample.items()}
