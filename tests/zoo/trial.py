"""Trains a family over the bridges and in one process, and compares the results."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import torch
from safetensors.torch import load_file

from hypha_trainer.arguments import loss_request
from hypha_trainer.job import parse_train_job
from hypha_trainer.models import load_model, load_preprocessor
from hypha_trainer.preprocessing import Preparation
from zoo.family import BATCH, Family, Tensors
from zoo.jobs import BATCHES, ROUNDS, TRAINERS, Jobs, Outcome, spec

SAMPLES: Final = len(TRAINERS) * BATCHES * BATCH
"""Each trainer trains the same samples in each round."""
_SLICE: Final = 2 * BATCH
NOISE: Final = 0.5
"""By how much the network may end worse than one process, as a part of what that gains."""
GAIN: Final = 0.02
"""The least that one process gains, as a part of the loss; less would show nothing."""


@dataclass(frozen=True)
class Trial:
    """What became of a family: losses before, after DiLoCo and after one process, and what is wrong."""

    family: Family
    parameters: int
    before: float = math.nan
    diloco: float = math.nan
    alone: float = math.nan
    problem: str = ""

    @property
    def verdict(self) -> str:
        """The last column of the table."""
        return self.problem or (f"refused: {self.family.refusal}" if self.family.refusal else "good")


def run(family: Family, jobs: Jobs) -> Trial:
    """Train a family in every way and compare."""
    folder = jobs.folder(family)
    family.write(folder)
    torch.manual_seed(1)
    rows = family.data(SAMPLES)
    shares = [{name: tensor.chunk(len(TRAINERS))[n] for name, tensor in rows.items()} for n in range(len(TRAINERS))]
    parameters = sum(
        p.numel() for p in load_model(family.task, folder, trust_remote_code=True, placement={}).parameters()
    )
    outcome = jobs.train(family, [list(_parts(share, _SLICE)) for share in shares])
    if family.refusal:
        return Trial(family, parameters, problem=_refusal_problem(family, outcome))
    if any(outcome.codes):
        return Trial(family, parameters, problem=f"exit codes {outcome.codes}: {_last_line(outcome)}")
    prepare = _preparation(family, folder)
    before = loss(family, folder, prepare, shares)
    alone = _train_alone(family, folder, prepare, shares)
    losses = [loss(family, model, prepare, shares) for model in outcome.models]
    problem = _equality_problem(outcome) or _loss_problem(before, losses[0], alone)
    return Trial(family, parameters, before, losses[0], alone, problem)


def loss(family: Family, folder: Path, prepare: Preparation, shares: list[Tensors]) -> float:
    """Return the mean loss of a saved model over all batches."""
    model = load_model(family.task, folder, trust_remote_code=True, placement={}).eval()
    return _mean_loss(model, prepare, shares)


def _mean_loss(model: torch.nn.Module, prepare: Preparation, shares: list[Tensors]) -> float:
    torch.manual_seed(2)
    with torch.no_grad():
        losses = [float(_loss(model, prepare(rows))) for share in shares for rows in _parts(share, BATCH)]
    return sum(losses) / len(losses)


def _loss(model: torch.nn.Module, inputs: Tensors) -> torch.Tensor:
    outputs = model(**inputs, **loss_request(model))
    return (outputs if isinstance(outputs, torch.Tensor) else outputs["loss"]).mean()


def _train_alone(family: Family, folder: Path, prepare: Preparation, shares: list[Tensors]) -> float:
    """Train in this process on the batches of all trainers together; return the loss."""
    model = load_model(family.task, folder, trust_remote_code=True, placement={})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=family.learning_rate)
    torch.manual_seed(3)
    for _ in range(ROUNDS):
        for batches in zip(*(_parts(share, BATCH) for share in shares), strict=True):
            rows = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
            optimizer.zero_grad()
            _loss(model, prepare(rows)).backward()
            optimizer.step()
    return _mean_loss(model.eval(), prepare, shares)


def _preparation(family: Family, folder: Path) -> Preparation:
    job = parse_train_job(json.dumps(spec(family, [], str(uuid4()))))
    preprocessor: Any = None
    if family.preprocessor:
        preprocessor = load_preprocessor(family.preprocessor[0], folder, trust_remote_code=True)
    return Preparation(job, preprocessor)


def _parts(rows: Tensors, size: int) -> Iterator[Tensors]:
    for start in range(0, len(next(iter(rows.values()))), size):
        yield {name: tensor[start : start + size].clone() for name, tensor in rows.items()}


def _refusal_problem(family: Family, outcome: Outcome) -> str:
    if all(outcome.codes) and all(family.refusal in log.splitlines()[-1] for log in outcome.logs):
        return ""
    return f"not refused with {family.refusal!r}: {_last_line(outcome)}"


def _last_line(outcome: Outcome) -> str:
    return next(
        (log.splitlines()[-1] for log, code in zip(outcome.logs, outcome.codes, strict=True) if code and log), ""
    )


def _equality_problem(outcome: Outcome) -> str:
    one, other = (load_file(model / "model.safetensors") for model in outcome.models)
    if different := [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]:
        return f"the trainers differ in {different[:3]}"
    if infinite := [name for name, tensor in one.items() if not tensor.isfinite().all()]:
        return f"not finite: {infinite[:3]}"
    return ""


def _loss_problem(before: float, diloco: float, alone: float) -> str:
    gain = before - alone
    if not all(map(math.isfinite, (before, diloco, alone))):
        return "a loss is not finite"
    if gain < GAIN * before:
        return "one process learns nothing"
    if diloco - alone > NOISE * gain:
        return f"worse than one process by {(diloco - alone) / gain:.0%} of its gain"
    return ""
