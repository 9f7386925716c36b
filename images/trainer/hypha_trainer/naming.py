"""The names and shapes under which tensors travel: those of the checkpoint, which all versions of transformers share.

transformers 5 renames parameters as it loads them, and splits or joins some; its `save_pretrained` reverts that. So do
pseudo-gradients here, so that trainers of one job may run different versions. Reverting moves elements and never
calculates, which makes it a permutation: applied to the elements' numbers it says how to get from the checkpoint's
tensors back to the model's.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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
    """Tensors of the model that become tensors of the checkpoint together; mostly one becomes one by another name.

    Attributes:
        shapes: The model's tensors.
        names: The checkpoint's tensors.
        model: Who converts; None where nothing but the name differs.
    """

    shapes: Shapes
    names: tuple[str, ...]
    model: PreTrainedModel | None = None

    def to_wire(self, tensors: Tensors) -> Tensors:
        """The checkpoint's tensors of the model's."""
        if self.model is None:
            return dict(zip(self.names, tensors.values(), strict=True))
        converted = revert_weight_conversion(self.model, tensors)
        return {name: converted[name] for name in self.names}

    def to_model(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """The model's tensors of the checkpoint's."""
        if self.model is None:
            return {name: tensors[wire] for name, wire in zip(self.shapes, self.names, strict=True)}
        flat = torch.empty(self._size(), dtype=tensors[self.names[0]].dtype)
        for name, places in self._places().items():
            flat[places.reshape(-1)] = tensors[name].reshape(-1)
        return self._cut(flat)

    def is_permutation(self) -> bool:
        """Whether every element of the model's tensors is found once in the checkpoint's."""
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
    """All tensors of `state`, in groups as small as the conversions allow."""
    plain = [Group({name: tensor.shape}, (name,)) for name, tensor in state.items()]
    if not isinstance(model, PreTrainedModel):
        return plain
    _forget_legacy_names(model)
    try:
        groups = _converted(model, {name: tensor.shape for name, tensor in state.items()})
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        log(f"tensors travel by the names of the installed transformers, as these cannot be reverted: {error}")
        return plain
    return groups


def _forget_legacy_names(model: PreTrainedModel) -> None:
    """Checkpoints of before transformers 4 are read by all versions, but only version 5 would write them so again."""
    used = getattr(model, "_weight_conversions", None)
    if used is not None:
        rules = get_checkpoint_conversion_mapping("legacy")  # type: ignore[no-untyped-call]
        legacy = [(rule.source_patterns, rule.target_patterns) for rule in rules]
        kept = [rule for rule in used if (rule.source_patterns, rule.target_patterns) not in legacy]
        setattr(model, "_weight_conversions", kept)  # noqa: B010  # as an attribute, it would be a module's to mypy


def _converted(model: PreTrainedModel, shapes: Shapes) -> list[Group]:
    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    whole = revert_weight_conversion(model, given)
    same = {id(tensor): name for name, tensor in whole.items()}
    groups = [Group({name: shapes[name]}, (same[id(given[name])],)) for name in given if id(given[name]) in same]
    rest = [name for name in given if id(given[name]) not in same]
    for key in (_alone, _by_layer, _together):
        rest, names = [], rest
        for part in _partition(names, key):
            group = _group(model, {name: shapes[name] for name in part}, whole)
            if group:
                groups.append(group)
            else:
                rest.extend(part)
    if rest or sorted(name for group in groups for name in group.names) != sorted(whole):
        raise ValueError(f"the conversion of {rest[:3] or 'its tensors'} has no inverse")
    return groups


def _group(model: PreTrainedModel, shapes: Shapes, whole: Tensors) -> Group | None:
    """The group of these tensors, where they are converted as among all the others and back again."""
    try:
        made = revert_weight_conversion(model, {n: torch.empty(shape, device="meta") for n, shape in shapes.items()})
        if any(name not in whole or whole[name].shape != tensor.shape for name, tensor in made.items()):
            return None
        group = Group(shapes, tuple(made), model)
        return group if group.is_permutation() else None
    except (ValueError, RuntimeError, KeyError, IndexError):  # some of the tensors that it needs are not among these
        return None


def _partition(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    parts: dict[str, list[str]] = defaultdict(list)
    for name in names:
        parts[key(name)].append(name)
    return list(parts.values())


def _alone(name: str) -> str:
    return name


def _by_layer(name: str) -> str:
    return re.match(r"\D*\d*", name).group()  # type: ignore[union-attr]  # matches anything


def _together(_name: str) -> str:
    return ""
