"""The inner optimiser and its learning-rate schedule."""

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from hypha_trainer.job import Optimizer, Schedule


def make_optimizer(settings: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters."""
    options: dict[str, object] = {}
    if settings.betas is not None:
        options["betas"] = settings.betas
    if settings.epsilon is not None:
        options["eps"] = settings.epsilon
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # Tensor parallelism splits only some parameters, and a fused step takes either split or unsplit ones.
    kinds = [[p for p in trained if isinstance(p, DTensor) is split] for split in (False, True)]
    groups = [{"params": kind} for kind in kinds if kind]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True, **options)  # type: ignore[arg-type]


def make_schedule(schedule: Schedule | None, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """Return the schedule over the batches of this trainer; constant if the job has none."""
    return LambdaLR(optimizer, partial(learning_rate_factor, schedule))


def learning_rate_factor(schedule: Schedule | None, step: int) -> float:
    """Return the factor of the learning rate at a step (from 0). The curves are transformers'; their end value stays.

    `wsd` has no stable phase, because the job has no length for it. The decay follows the warm-up.
    """
    if schedule is None:
        return 1.0
    warmup = schedule.warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    length = schedule.decay_steps if schedule.kind == "wsd" else schedule.training_steps - warmup
    progress = min(1.0, (step - warmup) / max(1, length))
    return 1 - progress if schedule.kind == "linear-with-warmup" else 0.5 * (1 + math.cos(math.pi * progress))
