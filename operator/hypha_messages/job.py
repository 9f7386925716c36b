"""The specification of a job: its executor, references to data and peers, optimisers and schedules."""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from hypha_messages.types import Double, Message, OmitsNone, PeerId, Unsigned32, Unsigned64, Uuid

MAX_PEERS: Final = 1024
"""Maximum number of peers in one reference."""

MAX_FILENAMES: Final = 1024
"""Maximum number of files in one reference to a repository."""

MAX_INPUT_NAMES: Final = 256
"""Maximum number of a model's or preprocessor's inputs."""

MAX_OUTPUT_NAMES: Final = 64
"""Maximum number of a model's outputs that an inference job names."""


class KebabMessage(Message):
    """A message whose keys are kebab-case on the wire."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))


class SelectionStrategy(Message):
    """Selects the peers, of several, to which a resource is sent."""

    type: Literal["All", "Random", "One"]


class DataSlice(Message):
    """One slice of a dataset, by the data node's numbering."""

    dataset: str
    index: Unsigned64


class DataRecord(Message):
    """The value of a dataset's DHT record. It is JSON on the wire."""

    num_slices: Unsigned64


class UriReference(Message):
    """A file at an HTTP(S) URL."""

    type: Literal["uri"] = "uri"
    value: str = Field(repr=False)


class HuggingFaceReference(Message):
    """Files of a Hugging Face repository."""

    type: Literal["huggingface"] = "huggingface"
    repository: str
    revision: str | None = None
    filenames: Annotated[list[str], Field(max_length=MAX_FILENAMES, fail_fast=True)]
    token: str | None = Field(default=None, repr=False)


class PeersReference(Message):
    """Peers to send to or receive from. With `resource`, the peers to pull that slice from."""

    type: Literal["peers"] = "peers"
    peers: Annotated[list[PeerId], Field(max_length=MAX_PEERS, fail_fast=True)]
    strategy: SelectionStrategy
    resource: DataSlice | None = None


class SchedulerReference(Message):
    """Slices of a dataset, in the order in which a scheduler assigns them."""

    type: Literal["scheduler"] = "scheduler"
    peer: PeerId
    dataset: str


Reference = Annotated[
    UriReference | HuggingFaceReference | PeersReference | SchedulerReference, Field(discriminator="type")
]


class ModelType(StrEnum):
    """The transformers auto class that builds the model."""

    AUTO = "auto"
    PRETRAINING = "pretraining"
    CAUSAL_LM = "causal-lm"
    MASKED_LM = "masked-lm"
    MASK_GENERATION = "mask-generation"
    SEQ_2_SEQ_LM = "seq2-seq-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    MULTIPLE_CHOICE = "multiple-choice"
    NEXT_SENTENCE_PREDICTION = "next-sentence-prediction"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105
    QUESTION_ANSWERING = "question-answering"
    TEXT_ENCODING = "text-encoding"
    DEPTH_ESTIMATION = "depth-estimation"
    IMAGE_CLASSIFICATION = "image-classification"
    VIDEO_CLASSIFICATION = "video-classification"
    KEYPOINT_DETECTION = "keypoint-detection"
    KEYPOINT_MATCHING = "keypoint-matching"
    OBJECT_DETECTION = "object-detection"
    IMAGE_SEGMENTATION = "image-segmentation"
    IMAGE_TO_IMAGE = "image-to-image"
    SEMANTIC_SEGMENTATION = "semantic-segmentation"
    INSTANCE_SEGMENTATION = "instance-segmentation"
    UNIVERSAL_SEGMENTATION = "universal-segmentation"
    ZERO_SHOT_IMAGE_CLASSIFICATION = "zero-shot-image-classification"
    ZERO_SHOT_OBJECT_DETECTION = "zero-shot-object-detection"
    AUDIO_CLASSIFICATION = "audio-classification"
    AUDIO_FRAME_CLASSIFICATION = "audio-frame-classification"
    CTC = "ctc"
    SPEECH_SEQ_2_SEQ = "speech-seq2-seq"
    AUDIO_X_VECTOR = "audio-x-vector"
    TEXT_TO_SPECTROGRAM = "text-to-spectrogram"
    TEXT_TO_WAVEFORM = "text-to-waveform"
    AUDIO_TOKENIZATION = "audio-tokenization"
    TABLE_QUESTION_ANSWERING = "table-question-answering"
    DOCUMENT_QUESTION_ANSWERING = "document-question-answering"
    VISION_2_SEQ = "vison2-seq"  # the reference implementation misspells it on the wire
    IMAGE_TEXT_TO_TEXT = "image-text-to-text"
    TIME_SERIES_PREDICTION = "time-series-prediction"


class PreprocessorType(StrEnum):
    """The transformers auto class that builds the preprocessor."""

    TOKENIZER = "tokenizer"
    FEATURE = "feature"
    IMAGE = "image"
    VIDEO = "video"
    AUTO = "auto"


class Model(KebabMessage):
    """The model to train or to infer with, and the tensors of a slice that are its inputs."""

    task: ModelType
    artifact: Reference
    input_names: Annotated[list[str], Field(max_length=MAX_INPUT_NAMES, fail_fast=True)]


class Preprocessor(KebabMessage):
    """The preprocessor that turns the tensors of a slice into the model's inputs."""

    task: PreprocessorType
    artifact: Reference
    input_names: Annotated[list[str], Field(max_length=MAX_INPUT_NAMES, fail_fast=True)]


class Adam(KebabMessage):
    """The inner optimiser (AdamW)."""

    learning_rate: Double
    betas: tuple[Double, Double] | None = None
    epsilon: Double | None = None


class Nesterov(KebabMessage):
    """The outer optimiser."""

    learning_rate: Double
    momentum: Double


_Signed32 = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]


class WarmupSchedule(Message):
    """A learning rate that warms up, then decays along a cosine or a line over the training steps."""

    type: Literal["cosine-with-warmup", "linear-with-warmup"]
    warmup_steps: _Signed32
    training_steps: _Signed32


class WarmupStableDecay(Message):
    """A learning rate that warms up, holds, and decays."""

    type: Literal["wsd"] = "wsd"
    warmup_steps: _Signed32
    decay_steps: _Signed32


class TrainConfig(OmitsNone):
    """How to train: model, data, the peers that get pseudo-gradients, and the peers that send merged updates."""

    model: Model
    data: Reference
    updates: PeersReference
    results: PeersReference
    optimizer: Adam
    batch_size: Unsigned32
    preprocessor: Preprocessor | None = None
    scheduler: Annotated[WarmupSchedule | WarmupStableDecay, Field(discriminator="type")] | None = None

    @property
    def fetched(self) -> tuple[Reference, ...]:
        """The references that the job may fetch: its model, preprocessor and data."""
        return _fetched_by(self)

    @property
    def senders(self) -> list[PeerId]:
        """The peers from which the job receives merged updates."""
        return self.results.peers

    @property
    def receivers(self) -> list[PeerId]:
        """The peers to which the job pushes pseudo-gradients."""
        return self.updates.peers


class AggregateConfig(Message):
    """How to aggregate: the peers that send pseudo-gradients, the peers that get updates, and the outer optimiser."""

    updates: PeersReference
    results: PeersReference
    optimizer: Nesterov

    @property
    def fetched(self) -> tuple[Reference, ...]:
        """The references that the job may fetch: none."""
        return ()

    @property
    def senders(self) -> list[PeerId]:
        """The peers from which the job receives pseudo-gradients."""
        return self.updates.peers

    @property
    def receivers(self) -> list[PeerId]:
        """The peers to which the job pushes merged updates."""
        return self.results.peers


class InferenceConfig(OmitsNone):
    """How to infer: the model, the slices to predict, and the peers that get the predictions.

    An extension of this project. The reference implementation knows no such jobs.

    Attributes:
        results: None leaves the predictions with the worker, where its owner has them kept.
        outputs: the outputs of the model to keep; None keeps every tensor that has a row for each sample.
    """

    model: Model
    data: SchedulerReference
    batch_size: Annotated[Unsigned32, Field(ge=1)]
    results: PeersReference | None = None
    preprocessor: Preprocessor | None = None
    outputs: Annotated[list[str], Field(min_length=1, max_length=MAX_OUTPUT_NAMES, fail_fast=True)] | None = None

    @property
    def fetched(self) -> tuple[Reference, ...]:
        """The references that the job may fetch: its model, preprocessor and data."""
        return _fetched_by(self)

    @property
    def senders(self) -> list[PeerId]:
        """The peers from which the job receives pushes: none."""
        return []

    @property
    def receivers(self) -> list[PeerId]:
        """The peers to which the job pushes predictions."""
        return self.results.peers if self.results else []


def _fetched_by(config: TrainConfig | InferenceConfig) -> tuple[Reference, ...]:
    preprocessor = (config.preprocessor.artifact,) if config.preprocessor else ()
    return (config.model.artifact, *preprocessor, config.data)


ExecutorClass = Literal["train", "aggregate", "inference"]
"""The kind of job that an executor runs. Each class has a configuration above and an executor below."""


class ExecutorName(Message):
    """The name of an executor within its class."""

    name: str


class TrainExecutor(Message):
    """A training executor with its configuration."""

    class_: Literal["train"] = Field(default="train", alias="class")
    descriptor: ExecutorName
    config: TrainConfig


class AggregateExecutor(Message):
    """An aggregating executor (parameter server) with its configuration."""

    class_: Literal["aggregate"] = Field(default="aggregate", alias="class")
    descriptor: ExecutorName
    config: AggregateConfig


class InferenceExecutor(Message):
    """An executor for inference with its configuration."""

    class_: Literal["inference"] = Field(default="inference", alias="class")
    descriptor: ExecutorName
    config: InferenceConfig


class ExecutorDescriptor(Message):
    """The class and name of an executor. Workers offer executors, and requests name the required ones."""

    class_: ExecutorClass = Field(alias="class")
    name: str

    def __str__(self) -> str:
        return f"{self.class_}/{self.name}"


class JobSpec(Message):
    """A job as a scheduler dispatches it, and as an executor reads it from its job file."""

    job_id: Uuid
    executor: Annotated[TrainExecutor | AggregateExecutor | InferenceExecutor, Field(discriminator="class_")]

    @property
    def descriptor(self) -> ExecutorDescriptor:
        """The executor that the job needs."""
        return ExecutorDescriptor(class_=self.executor.class_, name=self.executor.descriptor.name)

    @property
    def senders(self) -> frozenset[str]:
        """The peers from which this job receives pushes."""
        return frozenset(self.executor.config.senders)

    @property
    def receivers(self) -> frozenset[str]:
        """The peers to which this job pushes."""
        return frozenset(self.executor.config.receivers)
