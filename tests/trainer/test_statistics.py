"""What no optimizer trains: statistics, counters and frozen parameters, under every kind of parameter server."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hypha_executor.safetensors import open_header
from hypha_parameter_server.arithmetic import Nesterov, PerKind, Source, check, outer_step
from hypha_trainer.replicas import Weights, exchanged_groups
from hypha_trainer.weights import Tensors, add_update, difference, save_tensors

LEARNING_RATE, MOMENTUM = 0.7, 0.9
Update = Callable[[list[Path], Path, int], None]


def model(*more: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), *more)


def our_server(sent: list[Path], update: Path, number: int) -> None:
    """Take the outer step as this project's parameter server does."""
    sources = []
    for path in sent:
        descriptor, header = open_header(path)
        check(descriptor, header)
        sources.append(Source(path, header, PerKind(*[1 / len(sent)] * 3)))
    momentum = update.parent / "momentum"
    old = (momentum, open_header(momentum)[1]) if number else None
    new = update.parent / "momentum.new"
    outer_step(sources, Nesterov(LEARNING_RATE, MOMENTUM), old, (new, {}), (update, {"statistics": "mean"}))
    new.rename(momentum)


def reference_server(sent: list[Path], update: Path, number: int) -> None:
    """Take the outer step as the reference's parameter server does: in pairs, and integers truncated at each step."""
    files = [load_file(path) for path in sent]
    mean = files[0]
    for file in files[1:]:
        mean = {n: _scaled(mean[n] + file[n], 0.5) for n in mean}
    state = update.parent / "momentum"
    momentum = {n: _scaled(m, MOMENTUM) + mean[n] for n, m in load_file(state).items()} if number else mean
    save_file(momentum, state)
    save_file({n: _scaled(_scaled(momentum[n], MOMENTUM) + mean[n], LEARNING_RATE) for n in mean}, update)


def _scaled(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return tensor * factor if tensor.is_floating_point() else tensor.long() * int(factor)


class Trainer:
    """One of our trainers, without bridge."""

    def __init__(self, folder: Path, network: torch.nn.Module) -> None:
        self.folder, self.model = folder, network
        self.weights = Weights(network, exchanged_groups(network), main=True, alone=True, device=torch.device("cpu"))
        self.start = {name: tensor.detach().clone() for name, tensor in self.weights.tensors()}

    def send(self) -> Path:
        path = self.folder / "sent"
        save_tensors(path, difference(self.weights.tensors(), self.start, self.weights.untrained), self.start, {})
        return path

    def merge(self, update: Path) -> None:
        add_update(self.start, update, self.folder / "sent", self.weights.untrained)
        self.weights.load(self.start)


class StockTrainer:
    """The stock trainer's arithmetic: all tensors alike."""

    def __init__(self, folder: Path, network: torch.nn.Module) -> None:
        self.folder, self.model = folder, network
        self.start = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def send(self) -> Path:
        path = self.folder / "sent"
        save_file({name: tensor - self.start[name] for name, tensor in self.model.state_dict().items()}, path)
        return path

    def merge(self, update: Path) -> None:
        with safe_open(update, "pt") as file:
            self.start = {name: tensor + file.get_tensor(name) for name, tensor in self.start.items()}
        self.model.load_state_dict(self.start)


def rounds(trainers: list[Trainer | StockTrainer], server: Update, folder: Path, number: int) -> None:
    """Train rounds of forward passes over data of a small variance, far from the initial one."""
    for index in range(number):
        for seed, trainer in enumerate(trainers):
            torch.manual_seed(100 * index + seed)
            trainer.model.train()
            for _ in range(20):
                trainer.model(0.1 * torch.randn(16, 3))
        server([trainer.send() for trainer in trainers], folder / "update", index)
        for trainer in trainers:
            trainer.merge(folder / "update")
            network = trainer.model[1]
            if isinstance(trainer, Trainer) or server is our_server:
                assert network.running_var.min() >= 0
                trainer.model.eval()
                assert torch.isfinite(trainer.model(torch.randn(4, 3))).all()


def team(folder: Path, kinds: list[type[Trainer] | type[StockTrainer]]) -> list[Trainer | StockTrainer]:
    found = []
    for number, kind in enumerate(kinds):
        (folder / str(number)).mkdir()
        found.append(kind(folder / str(number), model()))
    return found


@pytest.mark.parametrize("server", [our_server, reference_server])
@pytest.mark.parametrize(
    "kinds",
    [[Trainer], [Trainer] * 2, [Trainer, StockTrainer], [StockTrainer, Trainer], [StockTrainer] * 2],
    ids=["ours", "ours-ours", "ours-stock", "stock-ours", "stock-stock"],
)
def test_variances_never_become_negative(
    tmp_path: Path, server: Update, kinds: list[type[Trainer] | type[StockTrainer]]
) -> None:
    rounds(team(tmp_path, kinds), server, tmp_path, 4)


def test_under_our_server_all_trainers_have_the_mean_of_their_statistics(tmp_path: Path) -> None:
    ours, stock = team(tmp_path, [Trainer, StockTrainer])
    for index, trainer in enumerate((ours, stock)):
        trainer.model[1].running_mean.fill_(index + 1)
        trainer.model[1].num_batches_tracked.fill_(10 * index)
    our_server([ours.send(), stock.send()], tmp_path / "update", 0)
    for trainer in (ours, stock):
        trainer.merge(tmp_path / "update")
        assert trainer.model[1].running_mean.tolist() == [1.5] * 4
        assert trainer.model[1].num_batches_tracked == 5


def test_under_another_server_statistics_and_counters_stay_the_trainers_own(tmp_path: Path) -> None:
    trainers = team(tmp_path, [Trainer, Trainer])
    for index, trainer in enumerate(trainers):
        trainer.model[1].running_mean.fill_(index + 1)
        trainer.model[1].num_batches_tracked.fill_(10 * index)
    reference_server([trainer.send() for trainer in trainers], tmp_path / "update", 0)
    for index, trainer in enumerate(trainers):
        trainer.merge(tmp_path / "update")
        assert trainer.model[1].running_mean.tolist() == [index + 1] * 4
        assert trainer.model[1].num_batches_tracked == 10 * index


@pytest.mark.parametrize("server", [our_server, reference_server])
def test_a_byte_that_counts_down_arrives_there(tmp_path: Path, server: Update) -> None:
    trainers: list[Trainer] = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        network = model()
        network.register_buffer("left", torch.tensor([10, 200], dtype=torch.uint8))
        trainers.append(Trainer(tmp_path / str(number), network))
    for round_number in range(2):
        for trainer in trainers:
            trainer.model.left -= 2
        server([trainer.send() for trainer in trainers], tmp_path / "update", round_number)
        for trainer in trainers:
            trainer.merge(tmp_path / "update")
            assert trainer.model.left.tolist() == [8 - 2 * round_number, 198 - 2 * round_number]


def test_buffers_that_no_server_knows_stay_the_trainers_own(tmp_path: Path) -> None:
    (network := model()).append(torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4)))
    trainer = Trainer(tmp_path, network)
    names = {"2.parametrizations.weight.0._u", "2.parametrizations.weight.0._v"}
    assert names < trainer.weights.untrained
    network.train()(torch.randn(8, 3))
    before = {name: network.state_dict()[name].clone() for name in names}
    our_server([trainer.send()], tmp_path / "update", 0)
    trainer.merge(tmp_path / "update")
    for name, tensor in before.items():
        torch.testing.assert_close(network.state_dict()[name], tensor)
        np.testing.assert_allclose(float(tensor.norm()), 1, rtol=1e-5)


def test_weight_norm_is_trained_like_other_weights() -> None:
    network = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3))
    weights = Weights(network, exchanged_groups(network), main=True, alone=True, device=torch.device("cpu"))
    assert weights.untrained == frozenset()


def test_masks_and_observers_without_data_do_not_count_as_a_diverged_model(tmp_path: Path) -> None:
    network = model()
    network.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    network.register_buffer("min_val", torch.tensor(torch.inf))
    trainer = Trainer(tmp_path, network)
    network.min_val.fill_(-3)
    sent = trainer.send()
    assert (load_file(sent)["mask"].tolist(), float(load_file(sent)["min_val"])) == ([0, 0], 0)
    our_server([sent], tmp_path / "update", 0)
    trainer.merge(tmp_path / "update")
    assert (network.mask.tolist(), float(network.min_val)) == ([0, -torch.inf], -3)


def test_a_hostile_mean_makes_no_variance_negative(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, model())
    trainer.model[1].running_var.fill_(0.5)
    trainer.send()
    update: Tensors = {name: torch.zeros_like(tensor) for name, tensor in trainer.start.items()}
    update["1.running_var"] -= 100
    save_file(update, tmp_path / "update", {"statistics": "mean"})
    trainer.merge(tmp_path / "update")
    assert trainer.model[1].running_var.tolist() == [0.5] * 4


def test_trainers_agree_on_a_running_mean_of_which_only_one_is_negative(tmp_path: Path) -> None:
    trainers = []
    for number, mean in enumerate((1.0, -3.0)):
        (tmp_path / str(number)).mkdir()
        trainers.append(Trainer(tmp_path / str(number), model()))
        trainers[-1].model[1].running_mean.fill_(mean)
    our_server([trainer.send() for trainer in trainers], tmp_path / "update", 0)
    for trainer in trainers:
        trainer.merge(tmp_path / "update")
        assert trainer.model[1].running_mean.tolist() == [-1.0] * 4


def test_frozen_parameters_are_not_driven_by_momentum(tmp_path: Path) -> None:
    network = model()
    network[0].weight.requires_grad_(False)
    trainer = Trainer(tmp_path, network)
    expected = network[0].weight.clone() + 1
    with torch.no_grad():
        network[0].weight += 1  # a moving average of other weights
    our_server([trainer.send()], tmp_path / "update", 0)
    trainer.merge(tmp_path / "update")
    torch.testing.assert_close(network[0].weight.detach(), expected)
