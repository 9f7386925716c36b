"""The configuration files of the devnet's nodes, with the same keys as the reference implementation's nodes."""

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
from hypha_worker.config_file import ConfigError, parse_value, read

Config = TypeVar("Config", bound=BaseModel)


class NodeConfig(BaseModel):
    """The keys of every node. Unknown keys, such as those of telemetry, are ignored."""

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
        """Return the network's part of the configuration."""
        return NetworkConfig(
            gateways=self.gateway_addresses,
            listen_addresses=self.listen_addresses,
            external_addresses=self.external_addresses,
            exclude_cidr=self.exclude_cidr,
            relay_circuit=self.relay_circuit and bool(self.gateway_addresses),
        )


class DataConfig(NodeConfig):
    """A data node. Each directory is a dataset of the same name; its files, sorted by name, are the slices."""

    dataset_path: Path | None = None
    dataset_paths: tuple[Path, ...] = ()

    @property
    def datasets(self) -> tuple[Path, ...]:
        """The directories of all datasets."""
        return (*self.dataset_paths, *((self.dataset_path,) if self.dataset_path else ()))


class _Source(BaseModel):
    """The source of a model or preprocessor: a Hugging Face repository or a URL."""

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
            raise ValueError("set either repository (with filenames) or uri")
        if self.repository is not None and not self.filenames:
            raise ValueError("filenames is missing: name the files of the repository to fetch")
        return self

    def artifact(self) -> HuggingFaceReference | UriReference:
        """Return the reference that the workers fetch."""
        if self.uri is not None:
            return UriReference(value=self.uri)
        return HuggingFaceReference(
            repository=self.repository or "", revision=self.revision, filenames=list(self.filenames), token=self.token
        )


class ModelSource(_Source):
    """The model to train."""

    type: ModelType

    def model(self) -> Model:
        """Return the model as a job specifies it."""
        return Model(task=self.type, artifact=self.artifact(), input_names=list(self.input_names))


class PreprocessorSource(_Source):
    """The preprocessor, which turns slices into the model's inputs."""

    type: PreprocessorType

    def preprocessor(self) -> Preprocessor:
        """Return the preprocessor as a job specifies it."""
        return Preprocessor(task=self.type, artifact=self.artifact(), input_names=list(self.input_names))


class Dataset(BaseModel):
    """The dataset's name, as data nodes announce it."""

    dataset: str


class Rounds(BaseModel):
    """How long to train: the number of rounds, and of samples in each, counted over all trainers."""

    update_rounds: Annotated[int, Field(ge=1)]
    avg_samples_between_updates: Annotated[int, Field(ge=1)]
    max_batch_size: Annotated[int, Field(ge=1)] | None = None


class Price(BaseModel):
    """The published bid, and the highest price that the scheduler accepts."""

    bid: Amount = 100.0
    max: Amount = 100.0


class JobResources(BaseModel):
    """The resources that the job needs of its workers, and the prices that it pays.

    Attributes:
        num_workers: How many trainers to find.
        min_workers: The job continues as long as this many trainers are left; default: all.
        worker: The resources of each trainer.
        parameter_server: The resources of the parameter server.
        worker_price: The price of a trainer.
        parameter_server_price: The price of the parameter server.
        deadline_s: How long to look for workers.
        stall_s: The job fails if no worker reports any progress for this long.
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
    """A training job. `schedule` varies the trainers' learning rate; without it, the rate is constant."""

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
    """The configuration of a scheduler."""

    scheduler: SchedulerSection


def load(model: type[Config], path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file; ConfigError. An override is `key.key=value`; a value that is not TOML is text."""
    _, values = read(path)
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
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {table} is a value, not a table; name a key of a table")
    values[last] = parse_value(text)
