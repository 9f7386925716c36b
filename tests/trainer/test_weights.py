from collections.abc import Set
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model

from hypha_executor.errors import ExecutorError
from hypha_executor.safetensors import read_header
from hypha_trainer.replicas import Weights, exchanged_groups
from hypha_trainer.weights import Tensors, add_update, difference, is_finite, save_tensors
from support.trainer import language_model


def weights() -> Tensors:
    return {
        "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b.half": torch.ones(5, dtype=torch.bfloat16),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }


def merge(mine: Tensors, update: Path, untrained: Set[str] = frozenset({"count"})) -> None:
    """Merge an update after a round in which no tensor changed here."""
    save_file({name: torch.zeros_like(tensor) for name, tensor in mine.items()}, update.parent / "own")
    add_update(mine, update, update.parent / "own", untrained)


def test_a_file_reads_as_safetensors_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "gradient.safetensors"
    save_tensors(path, weights().items(), weights(), {"round": "3", "job_id": "ünicode"})
    loaded = load_file(path)
    assert loaded.keys() == weights().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights().items())
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in weights().items())
    assert read_header(path).metadata == {"round": "3", "job_id": "ünicode"}
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_the_update_of_one_trainer_alone_gives_back_its_weights(tmp_path: Path) -> None:
    start, local = weights(), {name: tensor + 2 for name, tensor in weights().items()}
    path = tmp_path / "gradient.safetensors"
    save_tensors(path, difference(local.items(), start, {"count"}), start, {})
    add_update(start, path, path, {"count"})
    assert all(torch.equal(start[name], tensor) for name, tensor in local.items())


@given(values=st.lists(st.floats(width=32), max_size=70))
def test_finite_means_no_element_is_nan_or_infinite(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert is_finite(tensor) == bool(torch.isfinite(tensor).all())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a.weight": torch.zeros(3, 2)}, r"a.weight has shape \[3, 2\], the model's \[2, 3\]"),
        ({"a.weight": torch.zeros(2, 3, dtype=torch.int64)}, "a.weight is torch.int64"),
        ({"a.weight": torch.full((2, 3), float("nan"))}, "a.weight is not finite"),
        ({"b.half": torch.full((5,), float("inf"))}, "b.half is not finite"),
        ({"c": torch.zeros(1)}, r"adds \['c'\]"),
        ({"a.weight": None}, r"lacks \['a.weight'\]"),
    ],
)
def test_a_wrong_update_is_refused_and_changes_nothing(
    tmp_path: Path, change: dict[str, torch.Tensor | None], says: str
) -> None:
    update = {name: tensor for name, tensor in {**weights(), **change}.items() if tensor is not None}
    save_file(update, tmp_path / "update")
    mine = weights()
    with pytest.raises(ExecutorError, match=says):
        merge(mine, tmp_path / "update")
    assert all(torch.equal(mine[name], tensor) for name, tensor in weights().items())


def test_a_truncated_update_is_refused(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "update")
    whole = (tmp_path / "update").read_bytes()
    (tmp_path / "update").write_bytes(whole[:-1])
    with pytest.raises(ExecutorError, match="not a complete SafeTensors file"):
        merge(weights(), tmp_path / "update")


def test_counters_may_be_missing_from_an_update(tmp_path: Path) -> None:
    save_file({name: tensor for name, tensor in weights().items() if name != "count"}, tmp_path / "update")
    mine = weights()
    merge(mine, tmp_path / "update")
    assert mine["count"] == 7
    assert torch.equal(mine["a.weight"], 2 * weights()["a.weight"])


def test_an_update_of_another_precision_is_added_in_the_models_own(tmp_path: Path) -> None:
    update = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in weights().items()}
    save_file(update, tmp_path / "update")
    mine = weights()
    merge(mine, tmp_path / "update")
    assert mine["b.half"].dtype == torch.bfloat16
    assert torch.equal(mine["a.weight"], 2 * weights()["a.weight"])


def test_a_diverged_model_is_not_sent() -> None:
    local = {**weights(), "b.half": torch.full((5,), float("nan"), dtype=torch.bfloat16)}
    with pytest.raises(ExecutorError, match=r"b.half is not finite after training.*lower the learning rate"):
        list(difference(local.items(), weights(), {"count"}))


def test_tied_weights_are_exchanged_once_under_the_name_that_safetensors_gives_them(tmp_path: Path) -> None:
    model = language_model(tied=True)
    save_model(model, tmp_path / "stock.safetensors")
    spread = Weights(model, exchanged_groups(model), main=True, alone=True, device=torch.device("cpu"))
    assert {name for name, _ in spread.tensors()} == set(load_file(tmp_path / "stock.safetensors"))

    spread.load({name: tensor.detach() + 1 for name, tensor in spread.tensors()})
    untouched = language_model(tied=True)
    assert torch.equal(model.lm_head.weight, untouched.lm_head.weight + 1)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_running_statistics_are_exchanged_as_in_the_reference_and_masks_are_not(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    save_model(model, tmp_path / "stock.safetensors")
    names = [group.names[0] for group in exchanged_groups(model)]
    assert set(names) == set(load_file(tmp_path / "stock.safetensors"))
    assert "1.num_batches_tracked" in names
    model.register_buffer("mask", torch.ones(3, dtype=torch.bool))
    assert [group.names[0] for group in exchanged_groups(model)] == names
