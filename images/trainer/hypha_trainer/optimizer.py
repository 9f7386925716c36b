"""The inner optimiser and its learning-rate schedule."""

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from hypha_trainer.job import Optimizer, Schedule


def make_optimizer(settings: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    options: dict[str, object] = {}
    if settings.betas is not None:
        options["betas"] = settings.betas
    if settings.epsilon is not None:
        options["eps"] = settings.epsilon
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # Tensor parallel leaves some parameters whole, and one fused step takes one kind only.
    kinds = [[p for p in trained if isinstance(p, DTensor) is parted] for parted in (False, True)]
    groups = [{"params": kind} for kind in kinds if kind]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True, **options)  # type: ignore[arg-type]


def make_schedule(schedule: Schedule | None, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The schedule over the batches of this trainer; constant where the job has none."""
    return LambdaLR(optimizer, partial(learning_rate_factor, schedule))


def learning_rate_factor(schedule: Schedule | None, step: int) -> float:
    """What the learning rate is multiplied with at a step (from 0); transformers' own curves, at rest once they end.

    `wsd` has no stable phase: the job names no length for one, so the decay follows the warm-up.
    """
    if schedule is None:
        return 1.0
    warmup = schedule.warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    length = schedule.decay_steps if schedule.kind == "wsd" else schedule.training_steps - warmup
    progress = min(1.0, (step - warmup) / max(1, length))
    return 1 - progress if schedule.kind == "linear-with-warmup" else 0.5 * (1 + math.cos(math.pi * progress))
