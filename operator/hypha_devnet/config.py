"""The configuration files of the devnet's nodes, with the same keys as the reference implementation's nodes."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_messages.job import (
    MAX_PEERS,
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
from hypha_messages.types import Amount, PeerId, Resources
from hypha_messages.validation import describe
from hypha_network.network import NetworkConfig
from hypha_network.services.relay_server import BulkLimits
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


class RelayConfig(BaseModel):
    """The table `[relay]` of a gateway that relays bulk data. 1 MB is 1,000,000 bytes.

    Attributes:
        peer_mb_per_s: The rate of all circuits together that one peer opened, in MB/s.
        total_mb_per_s: The rate of all circuits together; default: unlimited.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    peer_mb_per_s: Annotated[float, Field(gt=0)]
    total_mb_per_s: Annotated[float, Field(gt=0)] = inf


class GatewayConfig(NodeConfig):
    """A gateway. With the table `relay`, it relays bulk data, at these rates."""

    relay: RelayConfig | None = None

    def network(self) -> NetworkConfig:
        """Return the network's part of the configuration."""
        rates = self.relay
        limits = BulkLimits(rates.peer_mb_per_s * 1e6, rates.total_mb_per_s * 1e6) if rates else None
        return replace(
            super().network(), relay_circuit=False, relay_server=True, relay_bulk=limits, kademlia_server=True
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
    """The model to train or to infer with."""

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


class WorkerResources(BaseModel):
    """The workers that the job needs, and the price that it pays.

    Attributes:
        num_workers: How many workers to find.
        worker: The resources of each worker.
        worker_price: The price of a worker.
        deadline_s: How long to look for workers.
        stall_s: How long workers may report no progress.
    """

    num_workers: Annotated[int, Field(ge=1)]
    worker: Resources
    worker_price: Price = Price()
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    stall_s: Annotated[float, Field(gt=0)] = 3600.0


class JobResources(WorkerResources):
    """The trainers that a training job needs, and its parameter server.

    Attributes:
        min_workers: The job continues as long as this many trainers are left; default: all.
        parameter_server: The resources of the parameter server.
        parameter_server_price: The price of the parameter server.
    """

    min_workers: Annotated[int, Field(ge=1)] | None = None
    parameter_server: Resources
    parameter_server_price: Price = Price()


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


class Results(BaseModel):
    """Who gets the predictions of an inference job. With neither key, the workers keep them where their owners say.

    Attributes:
        directory: The scheduler itself gets them, and writes a file for each slice into this directory.
        max_gb: The most that the scheduler takes as the predictions of one slice.
        peers: The peers that get them instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path | None = None
    max_gb: Annotated[float, Field(gt=0)] = 1.0
    peers: Annotated[tuple[PeerId, ...], Field(max_length=MAX_PEERS)] = ()

    @model_validator(mode="after")
    def _one_receiver(self) -> "Results":
        if self.directory is not None and self.peers:
            raise ValueError("set either directory or peers")
        return self


class InferenceJob(BaseModel):
    """An inference job: every slice of a dataset is predicted once.

    Attributes:
        executor: The name of the executor, of class inference.
        outputs: The outputs of the model to keep; default: all.
    """

    type: Literal["inference"]
    executor: str = "transformers"
    model: ModelSource
    preprocessor: PreprocessorSource | None = None
    dataset: Dataset
    batch_size: Annotated[int, Field(ge=1)] = 32
    outputs: tuple[str, ...] | None = None
    results: Results = Results()
    resources: WorkerResources


_JOB_TYPES: Final = ("diloco", "inference")


def _job_type(job: Any) -> str:
    return str(job.get("type", "diloco") if isinstance(job, dict) else getattr(job, "type", ""))


class SchedulerSection(BaseModel):
    """The table `[scheduler]`. A job without a type is a training job, as for the reference implementation."""

    job: Annotated[
        Annotated[DilocoJob, Tag("diloco")] | Annotated[InferenceJob, Tag("inference")], Discriminator(_job_type)
    ]


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
        details = error.errors(include_url=False, include_context=False, include_input=False)
        # The type of the job is no key of its table.
        keys = [{**detail, "loc": [key for key in detail["loc"] if key not in _JOB_TYPES]} for detail in details]
        raise ConfigError(f"{path}: {describe(keys, 'the configuration')}") from error


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
