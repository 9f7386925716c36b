import pytest
import torch
from transformers.optimization import (
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from hypha_trainer.job import Optimizer, Schedule
from hypha_trainer.optimizer import learning_rate_factor, make_optimizer, make_schedule

THEIRS = {
    "cosine-with-warmup": lambda o: get_cosine_schedule_with_warmup(o, 5, 20),
    "linear-with-warmup": lambda o: get_linear_schedule_with_warmup(o, 5, 20),
    "wsd": lambda o: get_wsd_schedule(o, 5, 15, num_stable_steps=0),
}


@pytest.mark.parametrize("kind", THEIRS)
def test_schedules_equal_those_of_transformers(kind: str) -> None:
    ours = make_optimizer(Optimizer(0.5, None, None), [torch.nn.Parameter(torch.ones(1))])
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    schedule = make_schedule(Schedule(kind, warmup_steps=5, training_steps=20, decay_steps=15), ours)
    reference = THEIRS[kind](theirs)
    for _ in range(20):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], abs=1e-9)
        ours.step()
        theirs.step()
        schedule.step()
        reference.step()


@pytest.mark.parametrize("kind", THEIRS)
def test_a_schedule_keeps_its_end_value(kind: str) -> None:
    schedule = Schedule(kind, warmup_steps=5, training_steps=20, decay_steps=15)
    assert all(learning_rate_factor(schedule, step) == pytest.approx(0) for step in (20, 30, 10_000))


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert {learning_rate_factor(None, step) for step in range(50)} == {1.0}


def test_settings_of_adam_that_the_job_lacks_are_torchs_defaults() -> None:
    parameters = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), requires_grad=False)]
    default = torch.optim.AdamW(parameters)
    (group,) = make_optimizer(Optimizer(0.1, None, None), parameters).param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.1, default.defaults["betas"], default.defaults["eps"])
    assert len(group["params"]) == 1
    (group,) = make_optimizer(Optimizer(0.1, (0.5, 0.6), 1e-3), parameters).param_groups
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)
