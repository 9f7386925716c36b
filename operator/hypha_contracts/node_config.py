"""The configuration of a node: people and the operator write it as TOML, `hypha_worker.config_file` reads it.

The reader may pass in the validation context the `directory` of the file and the function `is_supported` for addresses.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

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

from hypha_contracts.addresses import RESERVED_CIDRS, check_cidr
from hypha_contracts.names import CONNECTOR_PORT, TOKEN_AUDIENCE
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.job import ExecutorClass, ExecutorDescriptor
from hypha_messages.types import Amount, PeerId, Resources

PositiveMs = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]
PositiveS = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


def _relative_to_file(path: Path, info: ValidationInfo) -> Path:
    directory = (info.context or {}).get("directory", Path())
    return Path(directory, path.expanduser())


ConfiguredPath = Annotated[Path, AfterValidator(_relative_to_file)]
"""A path; a relative one starts at the directory of the configuration file."""


def _parse_pairs(value: Any) -> Any:
    """Accept `k=v,k=v` for a table, as the OpenTelemetry variables write it."""
    if not isinstance(value, str):
        return value
    pairs = (pair.partition("=") for pair in value.split(",") if pair.strip())
    table = {key.strip(): text.strip() for key, _, text in pairs}
    if "" in table:
        raise ValueError('write it as a table or as "key=value,key=value"')
    return table


def _is_supported(text: str, info: ValidationInfo) -> bool:
    """Return whether the reader of the configuration has the transport of an address; ValueError for any other text.

    Only the node knows addresses and its transports, so it passes the function `is_supported` in the context.
    """
    is_supported: Callable[[str], bool] = (info.context or {}).get("is_supported", lambda _text: True)
    return is_supported(text)


def _check_address(text: str, info: ValidationInfo) -> str:
    _is_supported(text, info)
    return text


Multiaddr = Annotated[str, AfterValidator(_check_address)]
Cidr = Annotated[str, AfterValidator(check_cidr)]
ObjectName = Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
TextTable = Annotated[dict[str, str], BeforeValidator(_parse_pairs)]
SecretTable = Annotated[dict[str, SecretStr], BeforeValidator(_parse_pairs)]


class Section(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ResourcesConfig(Section):
    """What this worker offers to schedulers."""

    cpu: Amount = Field(description="Cores.")
    memory: Amount = Field(description="GB of memory.")
    storage: Amount = Field(description="GB of disk space below work_dir.")
    gpu: Amount = Field(default=0.0, description="GB of video memory, all devices together; 0 without a GPU.")
    gpu_device: Amount = Field(default=0.0, description="GB of one device: leases get whole ones; 0: they share.")


class OfferConfig(Section):
    """What an offer says."""

    price: Amount = Field(default=100.0, description="The least that the whole worker costs (strategy whole).")
    floor: Amount = Field(
        default_factory=lambda offer: min(100.0, offer.get("price", 100.0)),
        description="Bids below this are not answered. Without being set, it is not above price.",
    )
    strategy: Literal["flexible", "whole"] = Field(
        default="whole",
        description="whole: the entire worker at max(price, bid); flexible: what was asked, at the bid.",
    )

    @field_validator("strategy", mode="before")
    @classmethod
    def _accept_table(cls, value: Any) -> Any:
        return value["type"] if isinstance(value, dict) and value.keys() == {"type"} else value


class SelectionConfig(Section):
    """Which of several competing requests is answered first."""

    strategy: Literal["profit", "utilization", "affinity"] = Field(
        default="profit",
        description="profit: best paid per resource; utilization: fills what is free best; affinity: by preference.",
    )
    schedulers: dict[PeerId, Weight] = Field(
        default={}, description="Affinity: peer id of a scheduler = preference (may be negative)."
    )
    executors: dict[str, Weight] = Field(
        default={}, description='Affinity: "class/name" or "class" of an executor = preference.'
    )


class LeasesConfig(Section):
    """How long resources are reserved."""

    temporary_ms: PositiveMs = Field(
        default=500, description="How long an offer stands until the scheduler must renew it."
    )
    duration_s: PositiveS = Field(default=10, description="How long a lease runs from each renewal.")
    prune_ms: PositiveMs = Field(default=250, description="How often expired leases are removed.")
    max_live: Annotated[int, Field(gt=0)] = Field(default=1024, description="Most leases at once.")
    ended_s: PositiveS = Field(
        default=60, description="How long renewals of a finished job's lease are still answered; it reserves nothing."
    )


class ArbiterConfig(Section):
    """How requests are collected."""

    window_ms: PositiveMs = Field(default=200, description="How long competing requests are collected.")
    window_messages: Annotated[int, Field(gt=0)] = Field(default=100, description="Most requests that are collected.")
    max_waiting: Annotated[int, Field(gt=0)] = Field(
        default=2000, description="Most requests that wait for room, those of one scheduler at most a quarter."
    )
    requests_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1000, description="Most requests of one scheduler per second; more are ignored."
    )


class JobsConfig(Section):
    """How jobs are run."""

    limits: bool = Field(default=True, description="Hold jobs to the CPU, memory and storage of their lease.")
    allow_private_addresses: bool = Field(
        default=False, description="Let jobs fetch from private, local and metadata addresses."
    )
    read_ahead: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Slices fetched before they are asked for."
    )
    output_log_bytes: Annotated[int, Field(ge=4096)] = Field(
        default=4 * 1024 * 1024, description="Most of a job's output that is kept, in bytes."
    )
    termination_grace_s: PositiveS = Field(default=5, description="From SIGTERM to SIGKILL.")
    report_s: PositiveS = Field(
        default=120, description="How long the end of a job is reported until a scheduler answers."
    )


class ExecutorConfig(Section):
    """One kind of job that this worker runs, and how."""

    class_: ExecutorClass = Field(alias="class", description="The kind of job.")
    name: Annotated[str, Field(min_length=1)] = Field(description="The executor that schedulers ask for.")
    runtime: Literal["process", "parameter-server", "kubernetes"] = Field(
        description="process: runs cmd and args; parameter-server: the built-in one."  # kubernetes: the operator's
    )
    cmd: Annotated[str, Field(min_length=1)] | None = Field(default=None, description="Program to run.")
    args: list[str] = Field(
        default=[], description="Its arguments; {SOCKET_PATH}, {WORK_DIR}, {JOB_JSON} and {JOB_FILE} are replaced."
    )
    env: dict[str, str] = Field(default={}, description="Added to its environment.")

    @field_validator("cmd", mode="after")
    @classmethod
    def _resolve(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "/" not in value:
            return value  # a name, to be found in PATH
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
        """How schedulers name this executor."""
        return ExecutorDescriptor(class_=self.class_, name=self.name)


class KubernetesConfig(Section):
    """The cluster in which jobs are pods. An operator writes this table; without it jobs are processes."""

    namespace: ObjectName = Field(description="Where the HyphaWorker and its jobs are.")
    worker: ObjectName = Field(description="Name of the HyphaWorker.")
    worker_uid: Annotated[str, Field(min_length=1)] = Field(description="Its uid.")
    connector_port: Annotated[int, Field(ge=1, le=65535)] = Field(
        default=CONNECTOR_PORT, description="Where bridges reach this node."
    )
    peer_id: PeerId | None = Field(default=None, description="The only identity that is accepted; any if absent.")
    audience: Annotated[str, Field(min_length=1)] = Field(
        default=TOKEN_AUDIENCE, description="For whom the tokens of bridges are issued."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = Field(
        default=KEEP_ENDED_S, description="How long an ended HyphaJob is kept."
    )
    accept_offers: bool = Field(default=True, description="false: no new offers; what is leased goes on.")
    pod_name: ObjectName = Field(
        default_factory=socket.gethostname, description="Name of this node's pod, which may give its host another."
    )


class NodeConfig(Section):
    """The configuration of a worker."""

    cert_pem: ConfiguredPath = Field(description="The node's certificate chain, its own certificate first.")
    key_pem: ConfiguredPath = Field(description="The certificate's Ed25519 key (PKCS#8).")
    trust_pem: ConfiguredPath = Field(description="The certificate authorities of the network.")
    crls_pem: ConfiguredPath | None = Field(default=None, description="Revocation lists.")

    gateway_addresses: Annotated[list[Multiaddr], Field(min_length=1)] = Field(
        description="Gateways, with or without /p2p/<id>; one must be reachable, more are redundancy."
    )
    listen_addresses: list[Multiaddr] = Field(
        default=["/ip4/0.0.0.0/tcp/0"], description="Where to accept connections; port 0 lets the system choose."
    )
    external_addresses: list[Multiaddr] = Field(
        default=[], description="Where others reach this node, if not at its listen addresses."
    )
    exclude_cidr: list[Cidr] = Field(
        default=list(RESERVED_CIDRS), description="Networks whose addresses are not taken from other peers."
    )
    relay_circuit: bool = Field(default=True, description="Be reachable through the gateways.")

    work_dir: ConfiguredPath = Field(description="Where jobs work and where the node keeps its state.")
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
        description="OpenTelemetry collector (OTLP over HTTP); without one nothing is exported.",
    )
    telemetry_protocol: Literal["http/protobuf", "http/json", "grpc"] = Field(
        default="http/protobuf",
        validation_alias=AliasChoices("telemetry_protocol", "exporter_otlp_protocol"),
        description="http/protobuf; without support for another one nothing is exported.",
    )
    telemetry_headers: SecretTable = Field(
        default={},
        validation_alias=AliasChoices("telemetry_headers", "exporter_otlp_headers"),
        description="Headers for the collector, a table or key=value,key=value.",
    )
    telemetry_attributes: TextTable = Field(
        default={},
        validation_alias=AliasChoices("telemetry_attributes", "resource_attributes"),
        description="Attributes of everything exported, a table or key=value,key=value.",
    )
    telemetry_sampler: Literal["always_on", "always_off", "traceidratio", "parentbased_traceidratio"] | None = Field(
        default=None,
        validation_alias=AliasChoices("telemetry_sampler", "traces_sampler"),
        description="Which traces are exported; all if absent.",
    )
    telemetry_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        validation_alias=AliasChoices("telemetry_sample_ratio", "traces_sampler_arg"),
        description="The share of traces for the ratio samplers.",
    )

    executors: Annotated[list[ExecutorConfig], Field(min_length=1)] = Field(description="What this worker can run.")

    @model_validator(mode="after")
    def _executors_differ(self) -> Self:
        names = [str(executor.descriptor) for executor in self.executors]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"executors: {repeated} is configured twice; keep one of them")
        return self

    @model_validator(mode="after")
    def _executors_fit_the_runtime(self) -> Self:
        for executor in self.executors:
            if (executor.runtime == "kubernetes") != (self.kubernetes is not None):
                raise ValueError(
                    f'executors: {executor.descriptor} has runtime "{executor.runtime}", and there is '
                    + (
                        'a table [kubernetes]: write runtime = "kubernetes", or remove the table'
                        if self.kubernetes
                        else "no table [kubernetes]: add it, or choose another runtime"
                    )
                )
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
        """What the worker has, as the messages say it."""
        return Resources(**self.resources.model_dump(exclude={"gpu_device"}))

    @property
    def runtime(self) -> Literal["process", "kubernetes"]:
        """How jobs run."""
        return "process" if self.kubernetes is None else "kubernetes"

    def executor(self, descriptor: ExecutorDescriptor) -> ExecutorConfig | None:
        """The configured executor of this class and name."""
        return next((e for e in self.executors if e.descriptor == descriptor), None)
