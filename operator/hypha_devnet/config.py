"""The configuration files of the devnet's nodes; the keys are those of the reference implementation's nodes."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_messages.job import (
    Adam,
    HuggingFaceReference,
    Model,
    ModelType,
    Nesterov,
    Preprocessor,
    PreprocessorType,
    UriReference,
    WarmupSchedule,
    WarmupStableDecay,
)
from hypha_messages.types import Amount, Resources
from hypha_messages.validation import describe
from hypha_network.network import NetworkConfig

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(Exception):
    """A configuration cannot be used; says which file and key, and what is wrong."""


class NodeConfig(BaseModel):
    """What every node is told. Unknown keys (such as telemetry's) are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    cert_pem: Path
    key_pem: Path
    trust_pem: Path
    crls_pem: Path | None = None
    gateway_addresses: tuple[str, ...] = ()
    listen_addresses: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    external_addresses: tuple[str, ...] = ()
    exclude_cidr: tuple[str, ...] = RESERVED_CIDRS
    relay_circuit: bool = True

    def network(self) -> NetworkConfig:
        """The part of it that the network takes."""
        return NetworkConfig(
            gateways=self.gateway_addresses,
            listen_addresses=self.listen_addresses,
            external_addresses=self.external_addresses,
            exclude_cidr=self.exclude_cidr,
            relay_circuit=self.relay_circuit and bool(self.gateway_addresses),
        )


class DataConfig(NodeConfig):
    """A data node: every directory is a dataset of its name, every file in it a slice, in the order of their names."""

    dataset_path: Path | None = None
    dataset_paths: tuple[Path, ...] = ()

    @property
    def datasets(self) -> tuple[Path, ...]:
        """All directories."""
        return (*self.dataset_paths, *((self.dataset_path,) if self.dataset_path else ()))


class _Source(BaseModel):
    """Where a model or preprocessor comes from: a Hugging Face repository or a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str | None = None
    revision: str | None = None
    filenames: tuple[str, ...] = ()
    token: str | None = Field(default=None, repr=False)
    uri: str | None = None
    input_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> "_Source":
        if (self.repository is None) == (self.uri is None):
            raise ValueError("name either a repository (with filenames) or a uri")
        if self.repository is not None and not self.filenames:
            raise ValueError("filenames: name the repository's files to fetch")
        return self

    def artifact(self) -> HuggingFaceReference | UriReference:
        """The reference that the workers fetch."""
        if self.uri is not None:
            return UriReference(value=self.uri)
        return HuggingFaceReference(
            repository=self.repository or "", revision=self.revision, filenames=list(self.filenames), token=self.token
        )


class ModelSource(_Source):
    """The model to train."""

    type: ModelType

    def model(self) -> Model:
        """The model as a job names it."""
        return Model(task=self.type, artifact=self.artifact(), input_names=list(self.input_names))


class PreprocessorSource(_Source):
    """What turns slices into the model's inputs."""

    type: PreprocessorType

    def preprocessor(self) -> Preprocessor:
        """The preprocessor as a job names it."""
        return Preprocessor(task=self.type, artifact=self.artifact(), input_names=list(self.input_names))


class Dataset(BaseModel):
    """The dataset's name, as data nodes announce it."""

    dataset: str


class Rounds(BaseModel):
    """How long to train: so many rounds of so many samples, of all trainers together."""

    update_rounds: Annotated[int, Field(ge=1)]
    avg_samples_between_updates: Annotated[int, Field(ge=1)]
    max_batch_size: Annotated[int, Field(ge=1)] | None = None


class Price(BaseModel):
    """The published bid, and the highest price that is accepted."""

    bid: Amount = 100.0
    max: Amount = 100.0


class JobResources(BaseModel):
    """What the job needs of its workers, and what it pays.

    `min_workers` is how many trainers must be left for the job to go on when some fail (default: all);
    `deadline_s` is how long to look for workers, `stall_s` how long the job may go without a word from any of them.
    """

    num_workers: Annotated[int, Field(ge=1)]
    min_workers: Annotated[int, Field(ge=1)] | None = None
    worker: Resources
    parameter_server: Resources
    worker_price: Price = Price()
    parameter_server_price: Price = Price()
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    stall_s: Annotated[float, Field(gt=0)] = 3600.0


class DilocoJob(BaseModel):
    """A training job; `schedule` is that of the trainers' learning rates, constant without one."""

    type: Literal["diloco"] = "diloco"
    model: ModelSource
    preprocessor: PreprocessorSource | None = None
    dataset: Dataset
    rounds: Rounds
    inner_optimizer: Adam
    outer_optimizer: Nesterov
    schedule: Annotated[WarmupSchedule | WarmupStableDecay, Field(discriminator="type")] | None = None
    resources: JobResources


class SchedulerSection(BaseModel):
    """The table `[scheduler]`."""

    job: DilocoJob


class SchedulerConfig(NodeConfig):
    """A scheduler."""

    scheduler: SchedulerSection


def load(model: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file; overrides are `key.key=value`, the value TOML or else text. ConfigError if it is wrong."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        _set(values, override)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe(error, 'the configuration')}") from error


def _set(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: write it as key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {table} is a value, not a table")
    values[last] = value
