"""Jobs of training and of inference: the part of their specifications that this package reads."""

from dataclasses import dataclass

from hypha_executor.bridge import Reference
from hypha_executor.errors import JobError
from hypha_executor.job import Node, is_number, parse_job


@dataclass(frozen=True)
class Artifact:
    """A model or preprocessor: its type, where its files are, and the tensors that it takes."""

    task: str
    reference: Reference
    input_names: tuple[str, ...]


@dataclass(frozen=True)
class Optimizer:
    """The settings of AdamW; None stands for torch's default."""

    learning_rate: float
    betas: tuple[float, float] | None
    epsilon: float | None


@dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule. Its kind decides which of the step counts it uses; the others are 0."""

    kind: str
    warmup_steps: int
    training_steps: int
    decay_steps: int


@dataclass(frozen=True)
class TrainJob:
    """What to train, on which data, and with which peers to exchange updates. The references are for the bridge."""

    job_id: str
    model: Artifact
    preprocessor: Artifact | None
    data: Reference
    updates: Reference
    results: Reference
    optimizer: Optimizer
    schedule: Schedule | None
    batch_size: int


@dataclass(frozen=True)
class InferenceJob:
    """What to infer with, on which data, and which peers get the predictions. The references are for the bridge.

    Attributes:
        results: None if no peer gets the predictions.
        outputs: The outputs of the model to keep; None for all.
    """

    job_id: str
    model: Artifact
    preprocessor: Artifact | None
    data: Reference
    dataset: str
    results: Reference | None
    batch_size: int
    outputs: tuple[str, ...] | None


SCHEDULE_STEPS = {"cosine-with-warmup": "training_steps", "linear-with-warmup": "training_steps", "wsd": "decay_steps"}


def parse_train_job(text: str) -> TrainJob:
    """Parse a job specification.

    Raises:
        JobError: A field is missing or wrong; the text names its path.
    """
    spec = parse_job(text, "train")
    config = spec.config
    preprocessor, schedule = config.optional("preprocessor"), config.optional("scheduler")
    return TrainJob(
        job_id=spec.job_id,
        model=_artifact(config.node("model")),
        preprocessor=_artifact(preprocessor) if preprocessor else None,
        data=config.node("data").value,
        updates=config.node("updates").value,
        results=config.node("results").value,
        optimizer=_optimizer(config.node("optimizer")),
        schedule=_schedule(schedule) if schedule else None,
        batch_size=int(config.number("batch_size", low=1)),
    )


def parse_inference_job(text: str) -> InferenceJob:
    """Parse a job specification.

    Raises:
        JobError: A field is missing or wrong; the text names its path.
    """
    spec = parse_job(text, "inference")
    config = spec.config
    preprocessor, results, data = config.optional("preprocessor"), config.optional("results"), config.node("data")
    return InferenceJob(
        job_id=spec.job_id,
        model=_artifact(config.node("model")),
        preprocessor=_artifact(preprocessor) if preprocessor else None,
        data=data.value,
        dataset=data.text("dataset"),
        results=results.value if results else None,
        batch_size=int(config.number("batch_size", low=1)),
        outputs=None if config.value.get("outputs") is None else config.texts("outputs"),
    )


def _artifact(node: Node) -> Artifact:
    return Artifact(node.text("task"), node.node("artifact").value, node.texts("input-names"))


def _optimizer(node: Node) -> Optimizer:
    betas = node.value.get("betas")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != 2 or not all(is_number(b) and 0 <= b < 1 for b in betas):
            raise JobError(f"{node.path}.betas must be two numbers from 0 to 1, not {betas!r}")
        betas = (float(betas[0]), float(betas[1]))
    epsilon = None if node.value.get("epsilon") is None else node.number("epsilon", low=0)
    return Optimizer(node.number("learning-rate", low=0), betas, epsilon)


def _schedule(node: Node) -> Schedule | None:
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
