"""The configuration of a node: people and the operator write it as TOML, `hypha_worker.config_file` reads it.

The reader may pass two entries in the validation context: the `directory` of the file, and the function `is_supported`.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hypha_contracts.addresses import RESERVED_CIDRS, Cidr
from hypha_contracts.names import CONNECTOR_PORT, TOKEN_AUDIENCE
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.job import ExecutorClass, ExecutorDescriptor
from hypha_messages.types import Amount, PeerId, Resources

PositiveAmount = Annotated[Amount, Field(gt=0)]
PositiveMs = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]
PositiveS = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(allow_inf_nan=False)]

MIN_GPU_GB: Final = 1.0
"""The least GPU memory, in GB, that a lease with a GPU reserves."""


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory", Path())
    try:
        return Path(directory, path.expanduser())
    except RuntimeError as error:
        raise ValueError(f"{path} begins with an unknown user. Write ./ before a name that begins with ~") from error


ConfiguredPath = Annotated[Path, AfterValidator(_relative_to_file)]
"""A path. A relative path starts at the directory of the configuration file."""


def _parse_pairs(value: Any) -> Any:
    """Accept the text `k=v,k=v` for a table, the form of the OpenTelemetry variables."""
    if not isinstance(value, str):
        return value
    pairs = (pair.partition("=") for pair in value.split(",") if pair.strip())
    table = {key.strip(): text.strip() for key, _, text in pairs}
    if "" in table:
        raise ValueError('write it as a table or as "key=value,key=value"')
    return table


def _is_supported(text: str, info: ValidationInfo) -> bool:
    """Return whether the node has the transport of an address; ValueError if the text is not an address.

    Only the node knows its transports, so it passes the function `is_supported` in the context.
    """
    is_supported: Callable[[str], bool] = (info.context or {}).get("is_supported", lambda _text: True)
    return is_supported(text)


def _check_address(text: str, info: ValidationInfo) -> str:
    _is_supported(text, info)
    return text


Multiaddr = Annotated[str, AfterValidator(_check_address)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
TextTable = Annotated[dict[str, str], BeforeValidator(_parse_pairs)]
SecretTable = Annotated[dict[str, SecretStr], BeforeValidator(_parse_pairs)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ResourcesConfig(Section):
    """The resources that this worker offers to schedulers."""

    cpu: PositiveAmount = Field(description="Cores.")
    memory: PositiveAmount = Field(description="GB of memory.")
    storage: PositiveAmount = Field(description="GB of disk space below work_dir.")
    gpu: Amount = Field(default=0.0, description="GB of GPU memory, all devices together; 0 without a GPU.")
    gpu_device: Amount = Field(
        default=0.0,
        description="GB of one GPU. Leases are rounded up to whole GPUs; 0 lets leases share a GPU.",
    )


class MinimumConfig(Section):
    """The least that a lease reserves, in the units of `ResourcesConfig`."""

    cpu: PositiveAmount = 1.0
    memory: PositiveAmount = 4.0
    storage: PositiveAmount = 20.0


class Terms(BaseModel):
    """The price of the worker, in the node's configuration and in a HyphaWorker."""

    price: Amount = Field(default=100.0, description="The lowest price of the complete worker (strategy whole).")
    floor: Amount = Field(
        default_factory=lambda offer: min(100.0, offer.get("price", 100.0)),
        description="The worker does not answer bids below this. Default: 100, or price if that is less.",
    )


class OfferConfig(Terms, Section):
    """The terms of an offer."""

    strategy: Literal["flexible", "whole"] = Field(
        default="whole",
        description="whole: offer the complete worker at max(price, bid); flexible: offer the request at the bid.",
    )
    minimum: MinimumConfig = Field(
        default=MinimumConfig(),
        description="The least that a lease reserves, if the worker has that much. Requests for less, or for an "
        "unspecified amount (0), are raised to it.",
    )

    @field_validator("strategy", mode="before")
    @classmethod
    def _accept_table(cls, value: Any) -> Any:
        return value["type"] if isinstance(value, dict) and value.keys() == {"type"} else value


class SelectionConfig(Section):
    """Which of several competing requests the worker answers first."""

    strategy: Literal["profit", "utilization", "affinity"] = Field(
        default="profit",
        description="profit: highest bid per resource; utilization: fills free capacity best; affinity: by preference.",
    )
    schedulers: dict[PeerId, Weight] = Field(default={}, description="Affinity: peer id = preference.")
    executors: dict[str, Weight] = Field(default={}, description="Affinity: class/name or class = preference.")


class LeasesConfig(Section):
    """How long resources are reserved."""

    temporary_ms: PositiveMs = Field(
        default=500, description="How long an offer waits for the scheduler to renew its lease."
    )
    duration_s: PositiveS = Field(default=10, description="Lease duration, counted from each renewal.")
    prune_ms: PositiveMs = Field(default=250, description="How often the node removes expired leases.")
    max_live: Annotated[int, Field(gt=0)] = Field(
        default=1024, description="Maximum number of leases; one scheduler may have half."
    )
    ended_s: PositiveS = Field(default=60, description="How long the node still renews the lease of a finished job.")


class ArbiterConfig(Section):
    """How the node collects requests before it answers the best."""

    window_ms: PositiveMs = Field(default=200, description="How long the node collects competing requests.")
    window_messages: Annotated[int, Field(gt=0)] = Field(
        default=100, description="Maximum number of collected requests."
    )
    max_waiting: Annotated[int, Field(gt=0)] = Field(
        default=2000,
        description="Maximum number of requests that wait for free capacity; one scheduler may have a quarter.",
    )
    requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1000, description="Maximum number of requests of one scheduler per second; more are ignored."
    )


class JobsConfig(Section):
    """Settings of every job."""

    limits: bool = Field(default=True, description="Limit jobs to the CPU, memory and storage of their lease.")
    allow_private_addresses: bool = Field(
        default=False, description="Let jobs download from private, local and metadata addresses."
    )
    exclude_cidr: list[Cidr] = Field(
        default=[], description="More networks from which jobs may not download, such as your own public addresses."
    )
    read_ahead: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Slices fetched before the executor asks for them."
    )
    output_log_bytes: Annotated[int, Field(ge=4096)] = Field(
        default=4 * 1024 * 1024, description="Maximum size of the kept output of a job, in bytes."
    )
    termination_grace_s: PositiveS = Field(default=5, description="Time between SIGTERM and SIGKILL.")
    report_s: PositiveS = Field(default=120, description="How long the node tries to report the end of a job.")


class ExecutorConfig(Section):
    """One kind of job that this worker runs, and how."""

    class_: ExecutorClass = Field(alias="class", description="The kind of job.")
    name: Annotated[str, Field(min_length=1)] = Field(description="The name that schedulers request.")
    runtime: Literal["process", "parameter-server", "kubernetes"] = Field(
        description="process: runs cmd and args; parameter-server: the built-in one."  # kubernetes: the operator's
    )
    cmd: Annotated[str, Field(min_length=1)] | None = Field(default=None, description="Program to run.")
    args: list[str] = Field(
        default=[], description="Its arguments. {SOCKET_PATH}, {WORK_DIR}, {JOB_JSON} and {JOB_FILE} are replaced."
    )
    env: dict[str, str] = Field(default={}, description="Added to the program's environment.")

    @field_validator("cmd", mode="after")
    @classmethod
    def _resolve(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "/" not in value:
            return value  # a name without a slash is looked up in PATH
        return str(_relative_to_file(Path(value), info))

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.runtime == "kubernetes" and (self.cmd is not None or self.args or self.env):
            raise ValueError('runtime "kubernetes" takes no cmd, args or env; write them into the HyphaWorker')
        if self.runtime == "process" and self.cmd is None:
            raise ValueError('runtime "process" needs cmd, the program to run')
        if self.runtime == "parameter-server" and self.cmd is not None:
            raise ValueError(
                'runtime "parameter-server" is built in and takes no cmd; use runtime "process" to run your own'
            )
        if self.runtime == "parameter-server" and self.class_ != "aggregate":
            raise ValueError('runtime "parameter-server" runs jobs of class "aggregate" only')
        return self

    @property
    def descriptor(self) -> ExecutorDescriptor:
        """The class and name by which schedulers request this executor."""
        return ExecutorDescriptor(class_=self.class_, name=self.name)


class KubernetesConfig(Section):
    """The cluster in which jobs are pods. The operator writes this table. Without it, jobs are processes."""

    namespace: ObjectName = Field(description="Namespace of the HyphaWorker and its jobs.")
    worker: ObjectName = Field(description="Name of the HyphaWorker.")
    worker_uid: Annotated[str, Field(min_length=1)] = Field(description="Uid of the HyphaWorker.")
    connector_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=CONNECTOR_PORT, description="Port at which bridges reach this node."
    )
    peer_id: PeerId | None = Field(
        default=None, description="The only peer id with which this node starts; any if absent."
    )
    audience: Annotated[str, Field(min_length=1)] = Field(
        default=TOKEN_AUDIENCE, description="Audience of the tokens of bridges."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = Field(
        default=KEEP_ENDED_S, description="How long an ended HyphaJob is kept."
    )
    accept_offers: bool = Field(default=True, description="false: no new offers; existing leases continue.")
    pod_name: ObjectName = Field(
        default_factory=socket.gethostname, description="Name of this node's pod; the pod's host name may differ."
    )


class NodeConfig(Section):
    """The configuration of a worker."""

    cert_pem: ConfiguredPath = Field(description="The node's certificate chain, its own certificate first.")
    key_pem: ConfiguredPath = Field(description="The certificate's Ed25519 key (PKCS#8).")
    trust_pem: ConfiguredPath = Field(description="The certificate authorities of the network.")
    crls_pem: ConfiguredPath | None = Field(default=None, description="Revocation lists.")

    gateway_addresses: Annotated[list[Multiaddr], Field(min_length=1)] = Field(
        description="Gateways, with or without /p2p/<id>; one must be reachable."
    )
    listen_addresses: list[Multiaddr] = Field(
        default=["/ip4/0.0.0.0/tcp/0"],
        description="Addresses at which the node accepts peers; port 0 lets the system choose.",
    )
    external_addresses: list[Multiaddr] = Field(
        default=[], description="Addresses at which peers reach this node, if not at its listen addresses."
    )
    exclude_cidr: list[Cidr] = Field(
        default=list(RESERVED_CIDRS), description="Networks in which the node ignores addresses of peers."
    )
    relay_circuit: bool = Field(default=True, description="Be reachable through the gateways.")

    work_dir: ConfiguredPath = Field(description="Directory of the jobs' files and the node's state.")
    resources: ResourcesConfig
    offer: OfferConfig = OfferConfig()
    selection: SelectionConfig = SelectionConfig()
    leases: LeasesConfig = LeasesConfig()
    arbiter: ArbiterConfig = ArbiterConfig()
    jobs: JobsConfig = JobsConfig()
    kubernetes: KubernetesConfig | None = None
    telemetry_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("telemetry_endpoint", "exporter_otlp_endpoint"),
        description="OpenTelemetry collector (OTLP over HTTP); without it, the node exports nothing.",
    )
    telemetry_protocol: Literal["http/protobuf", "http/json", "grpc"] = Field(
        default="http/protobuf",
        validation_alias=AliasChoices("telemetry_protocol", "exporter_otlp_protocol"),
        description="Only http/protobuf is supported; with another one, the node exports nothing.",
    )
    telemetry_headers: SecretTable = Field(
        default={},
        validation_alias=AliasChoices("telemetry_headers", "exporter_otlp_headers"),
        description="Headers for the collector, a table or key=value,key=value.",
    )
    telemetry_attributes: TextTable = Field(
        default={},
        validation_alias=AliasChoices("telemetry_attributes", "resource_attributes"),
        description="Attributes of all exported data, a table or key=value,key=value.",
    )
    telemetry_sampler: Literal["always_on", "always_off", "traceidratio", "parentbased_traceidratio"] | None = Field(
        default=None,
        validation_alias=AliasChoices("telemetry_sampler", "traces_sampler"),
        description="Which traces the node exports; all if absent.",
    )
    telemetry_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        validation_alias=AliasChoices("telemetry_sample_ratio", "traces_sampler_arg"),
        description="The fraction of traces that the ratio samplers keep.",
    )

    executors: Annotated[list[ExecutorConfig], Field(min_length=1, max_length=64)] = Field(
        description="The executors of this worker."
    )

    @model_validator(mode="after")
    def _executors_differ(self) -> Self:
        names = [str(executor.descriptor) for executor in self.executors]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"executors: {repeated} is configured twice; keep one of them")
        return self

    @model_validator(mode="after")
    def _executors_fit_the_runtime(self) -> Self:
        for executor in self.executors:
            problem = f'executors: {executor.descriptor} has runtime "{executor.runtime}", and there is'
            if self.kubernetes and executor.runtime != "kubernetes":
                raise ValueError(f'{problem} a table [kubernetes]: write runtime = "kubernetes", or remove the table')
            if not self.kubernetes and executor.runtime == "kubernetes":
                raise ValueError(f"{problem} no table [kubernetes]: add it, or choose another runtime")
        return self

    @field_validator("gateway_addresses")
    @classmethod
    def _names_a_supported_one(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if not any(_is_supported(address, info) for address in value):
            raise ValueError(
                "none of them is a TCP address, and QUIC is not supported; add one such as /ip4/203.0.113.50/tcp/4001"
            )
        return value

    @property
    def capacity(self) -> Resources:
        """The resources of the worker, as a message."""
        return Resources(**self.resources.model_dump(exclude={"gpu_device"}))

    @property
    def minimum(self) -> Resources:
        """The least that a lease reserves. The GPU memory is that of leases that ask for any."""
        return Resources(**self.offer.minimum.model_dump(), gpu=MIN_GPU_GB)

    @property
    def runtime(self) -> Literal["process", "kubernetes"]:
        """Whether jobs are processes or pods."""
        return "process" if self.kubernetes is None else "kubernetes"

    def executor(self, descriptor: ExecutorDescriptor) -> ExecutorConfig | None:
        """Return the configured executor of this class and name; None if there is none."""
        return next((e for e in self.executors if e.descriptor == descriptor), None)
