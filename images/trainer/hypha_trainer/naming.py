"""The names and shapes of exchanged tensors: those of the checkpoint, which are equal in all versions of transformers.

transformers 5 renames parameters when it loads them, and splits or joins some; its `save_pretrained` reverts that. This
module reverts it for pseudo-gradients, so that the trainers of one job may run different versions. Reverting only moves
elements, so it is a permutation. Applied to the positions of the model's elements, it returns their positions in the
checkpoint's tensors, which define the inverse.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import revert_weight_conversion

from hypha_trainer.log import log

Tensors = dict[str, torch.Tensor]
Shapes = dict[str, torch.Size]


@dataclass(frozen=True)
class Group:
    """Tensors of the model and the checkpoint's tensors that they become. Mostly one tensor is renamed.

    Attributes:
        shapes: The model's tensors.
        names: The checkpoint's tensors.
        model: The model, whose conversion is reverted; None if only the name differs.
    """

    shapes: Shapes
    names: tuple[str, ...]
    model: PreTrainedModel | None = None

    def to_wire(self, tensors: Tensors) -> Tensors:
        """Convert the model's tensors to the checkpoint's."""
        if self.model is None:
            return dict(zip(self.names, tensors.values(), strict=True))
        converted = revert_weight_conversion(self.model, tensors)
        return {name: converted[name] for name in self.names}

    def to_model(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Convert the checkpoint's tensors to the model's."""
        if self.model is None:
            return {name: tensors[wire] for name, wire in zip(self.shapes, self.names, strict=True)}
        flat = torch.empty(self._size(), dtype=tensors[self.names[0]].dtype)
        for name, places in self._places().items():
            flat[places.reshape(-1)] = tensors[name].reshape(-1)
        return self._cut(flat)

    def is_permutation(self) -> bool:
        """Return whether each element of the model's tensors is in the checkpoint's exactly once."""
        found, count = torch.zeros(self._size(), dtype=torch.bool), 0
        for places in self._places().values():
            count += places.numel()
            found[places.reshape(-1)] = True
        return count == len(found) and bool(found.all())

    def _places(self) -> Tensors:
        return self.to_wire(self._cut(torch.arange(self._size())))

    def _size(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    def _cut(self, flat: torch.Tensor) -> Tensors:
        parts = torch.split(flat, [shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def groups_of(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> list[Group]:
    """Return all tensors of `state`, in groups as small as the conversions allow."""
    plain = [Group({name: tensor.shape}, (name,)) for name, tensor in state.items()]
    if not isinstance(model, PreTrainedModel):
        return plain
    _drop_legacy_names(model)
    try:
        groups = _converted(model, {name: tensor.shape for name, tensor in state.items()})
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        log(f"tensors keep the names of the installed transformers, because these cannot be reverted: {error}")
        return plain
    return groups


def _drop_legacy_names(model: PreTrainedModel) -> None:
    """Drop the conversions for checkpoints from before transformers 4. Only version 5 would revert to their names."""
    used = getattr(model, "_weight_conversions", None)
    if used is not None:
        rules = get_checkpoint_conversion_mapping("legacy")  # type: ignore[no-untyped-call]
        legacy = [(rule.source_patterns, rule.target_patterns) for rule in rules]
        kept = [rule for rule in used if (rule.source_patterns, rule.target_patterns) not in legacy]
        setattr(model, "_weight_conversions", kept)  # noqa: B010  # as an attribute, it would be a module's to mypy


def _converted(model: PreTrainedModel, shapes: Shapes) -> list[Group]:
    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    checkpoint = revert_weight_conversion(model, given)
    same = {id(tensor): name for name, tensor in checkpoint.items()}
    groups = [Group({name: shapes[name]}, (same[id(given[name])],)) for name in given if id(given[name]) in same]
    rest = [name for name in given if id(given[name]) not in same]
    keys: tuple[Callable[[str], str], ...] = (lambda name: name, _layer, lambda _: "")  # alone, by layer, all together
    for key in keys:
        parts: dict[str, list[str]] = defaultdict(list)
        for name in rest:
            parts[key(name)].append(name)
        rest = []
        for part in parts.values():
            group = _group(model, {name: shapes[name] for name in part}, checkpoint)
            if group:
                groups.append(group)
            else:
                rest.extend(part)
    if rest or sorted(name for group in groups for name in group.names) != sorted(checkpoint):
        raise ValueError(f"the conversion of {rest[:3] or 'its tensors'} has no inverse")
    return groups


def _group(model: PreTrainedModel, shapes: Shapes, checkpoint: Tensors) -> Group | None:
    """Return these tensors as a group, or None if they do not convert by themselves as they do among all others."""
    try:
        made = revert_weight_conversion(model, {n: torch.empty(shape, device="meta") for n, shape in shapes.items()})
        if any(name not in checkpoint or checkpoint[name].shape != tensor.shape for name, tensor in made.items()):
            return None
        group = Group(shapes, tuple(made), model)
        return group if group.is_permutation() else None
    except (ValueError, RuntimeError, KeyError, IndexError):  # the conversion needs other tensors too
        return None


def _layer(name: str) -> str:
    return re.match(r"\D*\d*", name).group()  # type: ignore[union-attr]  # matches anything
