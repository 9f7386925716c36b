from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hypha_trainer.models import load_model
from hypha_trainer.naming import Group
from hypha_trainer.replicas import Weights, exchanged_groups
from hypha_trainer.weights import Tensors
from support.trainer import language_model

TEXT: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES: dict[str, Any] = {"num_channels": 1, "image_size": 8, "num_labels": 10}
VIT = ViTConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=4, **IMAGES
)
MODELS: dict[str, tuple[str, type[PreTrainedModel], Any]] = {
    "renamed": ("image-classification", ViTForImageClassification, VIT),
    "split": ("causal-lm", MixtralForCausalLM, MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4)),
    "tied": ("masked-lm", BertForMaskedLM, BertConfig(**TEXT)),
    "with buffers": (
        "image-classification",
        ResNetForImageClassification,
        ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=10),
    ),
}


def weights(model: torch.nn.Module) -> Weights:
    return Weights(model, exchanged_groups(model), main=True, alone=True, device=torch.device("cpu"))


def loaded(task: str, folder: Path) -> torch.nn.Module:
    return load_model(task, folder, trust_remote_code=False, placement={})


def copied(state: Any) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in state}


@pytest.mark.parametrize("kind", MODELS)
def test_exchanged_tensors_are_those_of_the_checkpoint(kind: str, tmp_path: Path) -> None:
    task, model_class, config = MODELS[kind]
    model_class(config).save_pretrained(tmp_path)
    checkpoint = load_file(tmp_path / "model.safetensors")
    sent = dict(weights(loaded(task, tmp_path)).tensors())
    assert sent.keys() == checkpoint.keys()
    assert all(torch.equal(sent[name], tensor) for name, tensor in checkpoint.items())


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_that_are_sent_and_loaded_again_leave_the_model_unchanged(kind: str, tmp_path: Path) -> None:
    task, model_class, config = MODELS[kind]
    model_class(config).save_pretrained(tmp_path)
    model = loaded(task, tmp_path)
    before, exchanged = copied(model.state_dict().items()), weights(model)
    sent = copied(exchanged.tensors())
    for tensor in model.state_dict().values():
        tensor.zero_()
    exchanged.load(sent)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_vit_of_transformers_5_exchanges_the_names_of_transformers_4(tmp_path: Path) -> None:
    ViTForImageClassification(VIT).save_pretrained(tmp_path)
    model = loaded("image-classification", tmp_path)
    old = "vit.encoder.layer.0.attention.attention.key.weight"
    sent = copied(weights(model).tensors())
    assert old in sent
    assert old not in model.state_dict()
    weights(model).load({**sent, old: sent[old] + 1})
    assert torch.equal(dict(weights(model).tensors())[old], sent[old] + 1)
    assert torch.equal(model.state_dict()["vit.layers.0.attention.k_proj.weight"], sent[old] + 1)


def test_split_tensors_are_converted_in_groups_no_larger_than_needed(tmp_path: Path) -> None:
    _, model_class, config = MODELS["split"]
    model_class(config).save_pretrained(tmp_path)
    groups = [group for group in exchanged_groups(loaded("causal-lm", tmp_path)) if len(group.names) > 1]
    assert [len(group.shapes) for group in groups] == [1] * 4
    assert sorted(len(group.names) for group in groups) == [4, 4, 8, 8]


def test_a_model_without_weights_has_the_names_of_a_checkpoint(tmp_path: Path) -> None:
    VIT.save_pretrained(tmp_path)
    sent = dict(weights(loaded("image-classification", tmp_path)).tensors())
    ViTForImageClassification(VIT).save_pretrained(tmp_path)
    assert sent.keys() == load_file(tmp_path / "model.safetensors").keys()


def test_a_head_on_a_base_models_checkpoint_has_the_names_of_the_complete_model(tmp_path: Path) -> None:
    ViTForImageClassification(VIT).save_pretrained(tmp_path / "whole")
    ViTModel(VIT, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    sent = dict(weights(loaded("image-classification", tmp_path / "base")).tensors())
    assert sent.keys() == load_file(tmp_path / "whole" / "model.safetensors").keys()


def test_names_from_before_transformers_4_are_loaded_but_not_exchanged(tmp_path: Path) -> None:
    BertForMaskedLM(BertConfig(**TEXT)).save_pretrained(tmp_path)
    expected = dict(weights(loaded("masked-lm", tmp_path)).tensors()).keys()
    tensors = load_file(tmp_path / "model.safetensors")
    old = {_before_4(name): tensor for name, tensor in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors")
    assert dict(weights(loaded("masked-lm", tmp_path)).tensors()).keys() == expected


def _before_4(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def test_a_conversion_that_calculates_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group({"a": torch.Size([2]), "b": torch.Size([2])}, ("x",), language_model())
    for made, whole in [([0, 1, 2, 3], True), ([3, 1, 0, 2], True), ([0, 0, 2, 3], False), ([0, 1, 2], False)]:
        monkeypatch.setattr("hypha_trainer.naming.revert_weight_conversion", lambda *_, m=made: {"x": torch.tensor(m)})
        assert group.is_permutation() == whole
