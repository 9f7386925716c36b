"""The models that the demo can train: how, on what, and when a trained one is good enough.

The numbers come from experiments. `hypha_devnet.demo.digits` and `hypha_devnet.demo.language` have the data.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

_UNTRAINED_STEPS: Final = 20
"""The learning rate decays over this many steps more than there are, so that the last ones still learn."""


class Verdict(NamedTuple):
    """Whether a trained model is good, and why."""

    good: bool
    reason: str


class Score(Protocol):
    """What the number means by which held-out samples judge a model."""

    def text(self, score: float) -> str:
        """Return a score in a few words."""

    def verdict(self, network: float, alone: float, baseline: float) -> Verdict:
        """Judge the network's model by its score, that of one process, and that of the simplest guess."""


@dataclass(frozen=True)
class Accuracy:
    """The share of held-out samples that a model gets right.

    Attributes:
        wanted: What the network's model must exceed.
        closeness: How far it may be below the model of one process.
    """

    wanted: float
    closeness: float

    def text(self, score: float) -> str:
        """Return the share as a percentage."""
        return f"{score:.1%} of the held-out digits read right"

    def verdict(self, network: float, alone: float, baseline: float) -> Verdict:  # noqa: ARG002 - far below `wanted`
        """Judge by both limits."""
        above, close = network > self.wanted, alone - network <= self.closeness
        reason = (
            f"{'above' if above else 'NOT above'} {self.wanted:.0%}, "
            f"{'within' if close else 'NOT within'} {self.closeness * 100:.0f} points of it"
        )
        return Verdict(above and close, reason)


@dataclass(frozen=True)
class TextLoss:
    """The mean loss for each byte of held-out text, in nats. For people it is a perplexity, which is its exponential.

    Attributes:
        wanted: The perplexity of the network's model must be below this part of the baseline's.
        closeness: By what part of it the loss may exceed that of one process.
    """

    wanted: float
    closeness: float

    def text(self, score: float) -> str:
        """Return the perplexity."""
        return f"perplexity {math.exp(score):.2f} for each byte of held-out text"

    def verdict(self, network: float, alone: float, baseline: float) -> Verdict:
        """Judge by both limits."""
        low, close = network < baseline + math.log(self.wanted), network <= alone * (1 + self.closeness)
        reason = (
            f"{'below' if low else 'NOT below'} {self.wanted:.0%} of the frequencies' perplexity, "
            f"loss {network:.3f} {'within' if close else 'NOT within'} {self.closeness:.0%} of {alone:.3f}"
        )
        return Verdict(low and close, reason)


@dataclass(frozen=True)
class DemoModel:
    """A model and how to train it. The network and the single process see the same samples.

    Attributes:
        name: The dataset's name, and its repository's in the hub.
        title: What it learns from, for the plot.
        samples: What its samples are, in the plural.
        score: What its score means.
        baseline: What the simplest guess uses.
        type: The model type of the job.
        input_names: The model's inputs.
        loader: The class that loads it.
        tokenized: Whether a tokenizer makes the inputs from the column `text` of the slices.
        held_out: The share of the samples that no training sees.
        batch_size: Samples in a batch of a trainer.
        batch_alone: Samples in a batch of the single process.
        samples_per_round: Counted over all trainers.
    """

    name: str
    title: str
    samples: str
    score: Score
    baseline: str
    type: str
    input_names: tuple[str, ...]
    loader: str
    tokenized: bool
    held_out: float
    slices: int
    batch_size: int
    batch_alone: int
    samples_per_round: int
    rounds: int
    learning_rate: float
    outer_learning_rate: float
    outer_momentum: float
    warmup_steps: int = 20
    seed: int = 0

    @property
    def repository(self) -> str:
        """The model's repository in the hub."""
        return f"hypha-demo/{self.name}"

    @property
    def total_samples(self) -> int:
        """The samples that all trainers together see, as does the single process."""
        return self.rounds * self.samples_per_round

    def steps(self, samples: int) -> int:
        """Return over how many steps the learning rate decays, if the samples of one step are so many."""
        return self.total_samples // samples + _UNTRAINED_STEPS


class ModelName(StrEnum):
    """The models, as the command line names them."""

    DIGITS = "digits"
    CAUSAL_LM = "causal-lm"


DIGITS: Final = DemoModel(
    name="digits",
    title="Handwritten digits",
    samples="digits",
    score=Accuracy(wanted=0.95, closeness=0.02),
    baseline="Always the same digit",
    type="image-classification",
    input_names=("pixel_values", "labels"),
    loader="AutoModelForImageClassification",
    tokenized=False,
    held_out=0.2,
    slices=8,
    batch_size=32,
    batch_alone=32,
    samples_per_round=1280,
    rounds=20,
    learning_rate=2e-3,
    outer_learning_rate=0.7,
    outer_momentum=0.5,
)

LANGUAGE: Final = DemoModel(
    name="causal-lm",
    title="Python's documentation, byte by byte",
    samples="passages",
    score=TextLoss(wanted=1 / 3, closeness=0.15),
    baseline="Frequencies of the bytes",
    type="causal-lm",
    input_names=("input_ids", "attention_mask", "labels"),
    loader="AutoModelForCausalLM",
    tokenized=True,
    held_out=0.1,
    slices=16,
    batch_size=16,
    batch_alone=32,  # of both trainers together, so that one process makes as many steps as each of them
    samples_per_round=320,
    rounds=64,
    learning_rate=4e-3,
    outer_learning_rate=1.0,  # momentum overshoots, because the loss falls by much in each round
    outer_momentum=0.0,
)

MODELS: Final = {ModelName.DIGITS: DIGITS, ModelName.CAUSAL_LM: LANGUAGE}
