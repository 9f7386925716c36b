"""A training job, as the bridge's side hands it over in JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypha_trainer.errors import JobError

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Artifact:
    """A model or preprocessor: its type, where its files are, and the tensors that it takes."""

    task: str
    reference: Json
    input_names: tuple[str, ...]


@dataclass(frozen=True)
class Optimizer:
    """AdamW; None means torch's default."""

    learning_rate: float
    betas: tuple[float, float] | None
    epsilon: float | None


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule; which steps count depends on its kind."""

    kind: str
    warmup_steps: int
    training_steps: int
    decay_steps: int


@dataclass(frozen=True)
class Job:
    """What to train, on what, and with whom to exchange updates. References stay as they came, for the bridge."""

    job_id: str
    model: Artifact
    preprocessor: Artifact | None
    data: Json
    updates: Json
    results: Json
    optimizer: Optimizer
    schedule: Schedule | None
    batch_size: int


SCHEDULE_STEPS = {"cosine-with-warmup": "training_steps", "linear-with-warmup": "training_steps", "wsd": "decay_steps"}


def parse_job(text: str) -> Job:
    """Reads a job specification.

    Raises:
        JobError: What is missing or wrong, by its path in the specification.
    """
    try:
        spec = _Node(json.loads(text), "job")
    except ValueError as error:
        raise JobError(f"the job is not JSON ({error}); give the job specification with --job or --job-file") from None
    executor = spec.node("executor")
    if executor.text("class") != "train":
        raise JobError(
            f"executor.class is {executor.text('class')!r}, this executor only trains; check the worker's executors"
        )
    config = executor.node("config")
    preprocessor, schedule = config.optional("preprocessor"), config.optional("scheduler")
    return Job(
        job_id=spec.text("job_id"),
        model=_artifact(config.node("model")),
        preprocessor=_artifact(preprocessor) if preprocessor else None,
        data=config.node("data").value,
        updates=config.node("updates").value,
        results=config.node("results").value,
        optimizer=_optimizer(config.node("optimizer")),
        schedule=_schedule(schedule) if schedule else None,
        batch_size=int(config.number("batch_size", low=1)),
    )


def _artifact(node: "_Node") -> Artifact:
    names = node.value.get("input-names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise JobError(f"{node.path}.input-names must list the names of tensors, it is {names!r}")
    return Artifact(node.text("task"), node.node("artifact").value, tuple(names))


def _optimizer(node: "_Node") -> Optimizer:
    betas = node.value.get("betas")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in betas):
            raise JobError(f"{node.path}.betas must be two numbers from 0 to 1, it is {betas!r}")
        betas = (float(betas[0]), float(betas[1]))
    epsilon = None if node.value.get("epsilon") is None else node.number("epsilon", low=0)
    return Optimizer(node.number("learning-rate", low=0), betas, epsilon)


def _schedule(node: "_Node") -> Schedule | None:
    kind = node.value.get("type")
    if not kind:
        return None
    if kind not in SCHEDULE_STEPS:
        raise JobError(f"{node.path}.type is {kind!r}, known are {', '.join(SCHEDULE_STEPS)}")
    steps = {SCHEDULE_STEPS[kind]: int(node.number(SCHEDULE_STEPS[kind], low=0))}
    return Schedule(
        kind=kind,
        warmup_steps=int(node.number("warmup_steps", low=0)),
        training_steps=steps.get("training_steps", 0),
        decay_steps=steps.get("decay_steps", 0),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Node:
    """A JSON object and its path, for errors that say where."""

    def __init__(self, value: object, path: str):
        if not isinstance(value, dict):
            raise JobError(f"{path} must be an object, it is {type(value).__name__}")
        self.value: dict[str, Any] = value
        self.path = path

    def _get(self, key: str) -> Any:
        if key not in self.value:
            raise JobError(f"{self.path}.{key} is missing")
        return self.value[key]

    def node(self, key: str) -> "_Node":
        return _Node(self._get(key), f"{self.path}.{key}")

    def optional(self, key: str) -> "_Node | None":
        return None if self.value.get(key) is None else self.node(key)

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise JobError(f"{self.path}.{key} must be text, it is {value!r}")
        return value

    def number(self, key: str, *, low: float) -> float:
        value = self._get(key)
        if not _is_number(value) or not low <= value < float("inf"):
            raise JobError(f"{self.path}.{key} must be a number of at least {low}, it is {value!r}")
        return float(value)
