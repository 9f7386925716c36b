"""The configuration of a node: people and the operator write it as TOML, `hypha_worker.config_file` reads it.

The reader may pass two entries in the validation context: the `directory` of the file, and the function `is_supported`.
"""

import socket
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    AwareDatetime,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hypha_contracts.addresses import RESERVED_CIDRS, Cidr, parse_listen_address
from hypha_contracts.market_config import (
    ArbiterConfig,
    LeasesConfig,
    OfferConfig,
    PositiveS,
    ResourcesConfig,
    SchedulersConfig,
    Section,
    SelectionConfig,
)
from hypha_contracts.names import CONNECTOR_PORT, TOKEN_AUDIENCE
from hypha_contracts.pairs import parse_pairs
from hypha_contracts.peer_ports import HostPort
from hypha_contracts.proxies import Proxies
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.job import ExecutorClass, ExecutorDescriptor
from hypha_messages.types import PeerId, Resources

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
    return parse_pairs(value) if isinstance(value, str) else value


def _check_listen_address(value: Any) -> str:
    parse_listen_address(str(value))
    return str(value)


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
Repository = Annotated[str, Field(max_length=193, pattern=r"^[\w.-]+/[\w.-]+$")]
Repositories = Annotated[list[Repository], Field(min_length=1, max_length=256)]
"""Repositories of a model hub, as owner/name."""
HostName = Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$")]
ListenAddress = Annotated[str, BeforeValidator(_check_listen_address)]
Sampler = Literal[
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]


class HubTokenConfig(Section):
    """A token of yours for the model hub. Every job may use it to read these repositories, if it brings none itself."""

    file: ConfiguredPath = Field(description="File with the token alone, which only the node's user may read (0600).")
    repositories: Repositories = Field(description="The repositories, such as owner/name.")


class JobsConfig(Section):
    """Settings of every job."""

    limits: bool = Field(default=True, description="Limit jobs to the CPU, memory and storage of their lease.")
    allow_private_addresses: bool = Field(
        default=False, description="Let jobs download from private, local and metadata addresses."
    )
    exclude_cidr: list[Cidr] = Field(
        default=[], description="More networks from which jobs may not download, such as your own public addresses."
    )
    proxy: Proxies | None = Field(
        default=None,
        description="Proxies of downloads. Default: the variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY for the model "
        "hub, and no proxy for other addresses.",
    )
    trust_pem: ConfiguredPath | None = Field(
        default=None,
        description="Authorities that downloads trust besides the public ones, for a proxy that intercepts TLS or a "
        "private mirror.",
    )
    hub_token: HubTokenConfig | None = Field(default=None, description="A token of yours that jobs may use.")
    cache_dir: ConfiguredPath | None = Field(
        default=None,
        description="Directory of public files of the model hub, so that several jobs of one model download it once. "
        "Default: each job downloads its own.",
    )
    cache_max_bytes: Annotated[int, Field(gt=0)] = Field(
        default=100 * 1000**3,
        description="The most that cache_dir may take, in bytes. Then the least recently used files are removed.",
    )
    read_ahead: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Slices fetched before the executor asks for them."
    )
    max_duration_s: Annotated[int, Field(gt=0, lt=2**31)] | None = Field(
        default=None, description="How long a job may run. Then the node ends it. Absent: as long as its lease."
    )
    output_log_bytes: Annotated[int, Field(ge=4096)] = Field(
        default=4 * 1024 * 1024, description="Maximum size of each of the two files of a job's output, in bytes."
    )
    keep_ended_s: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=KEEP_ENDED_S, description="How long an ended job's logs are kept, or in a cluster its HyphaJob."
    )
    log_dir: ConfiguredPath | None = Field(
        default=None, description="Directory of the logs of ended jobs. Default: logs in work_dir."
    )
    ended_log_bytes: Annotated[int, Field(ge=0)] = Field(
        default=1024**3, description="Maximum size of the logs of all ended jobs, in bytes. The newest are kept."
    )
    output_dir: ConfiguredPath | None = Field(
        default=None,
        description="Directory of trained models and predictions. Default: they are deleted with their job.",
    )
    output_max_bytes: Annotated[int, Field(gt=0)] = Field(
        default=100 * 1000**3,
        description="The size that output_dir may reach, in bytes. Then nothing more is kept; nothing is ever deleted.",
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


def _check_ip(text: str) -> str:
    ip_address(text)
    return text


def _split_words(value: Any) -> Any:
    """Accept the text `a,b` for a list, the form in which a pod learns the addresses of its node."""
    return value.split(",") if isinstance(value, str) else value


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
    host_ports: list[HostPort] = Field(default=[], description="Ports at which peers reach this node at host_ips.")
    host_ips: Annotated[list[Annotated[str, AfterValidator(_check_ip)]], BeforeValidator(_split_words)] = Field(
        default=[], description="IP addresses of the machine of this node's pod."
    )
    common_labels: dict[str, str] = Field(default={}, description="Labels of every HyphaJob and Secret of a job.")
    common_annotations: dict[str, str] = Field(default={}, description="Annotations of these objects.")
    pod_name: ObjectName = Field(
        default_factory=socket.gethostname, description="Name of this node's pod; the pod's host name may differ."
    )

    @property
    def host_addresses(self) -> list[str]:
        """The addresses at which peers reach this node at its machine."""
        return [address for port in self.host_ports for address in port.at(self.host_ips)]


class StatusPageConfig(Section):
    """A page that shows the state of this node in a browser. Whoever reaches its address can read it."""

    listen: ListenAddress | None = Field(
        default=None,
        description="Where the node serves the page: a port of this host such as 8081, or an address such as "
        "127.0.0.1:8081. Absent: nowhere. Whoever can connect to it can read the page, which has no password.",
    )
    hosts: Annotated[list[HostName], Field(max_length=64)] = Field(
        default=[],
        description="Names under which browsers open the page, such as worker.example.org, if not by an IP address or "
        "localhost.",
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
    suspend: bool = Field(default=False, description="Make no new offers. Existing leases and jobs go on.")
    suspend_deadline: AwareDatetime | None = Field(
        default=None,
        description="While suspend is set, when the node ends the jobs that still run, such as 2030-01-31T08:00:00Z. "
        "Absent: they run to their end.",
    )
    resources: ResourcesConfig
    offer: OfferConfig = OfferConfig()
    selection: SelectionConfig = SelectionConfig()
    schedulers: SchedulersConfig = SchedulersConfig()
    leases: LeasesConfig = LeasesConfig()
    arbiter: ArbiterConfig = ArbiterConfig()
    jobs: JobsConfig = JobsConfig()
    status_page: StatusPageConfig = StatusPageConfig()
    kubernetes: KubernetesConfig | None = None
    telemetry_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("telemetry_endpoint", "exporter_otlp_endpoint"),
        description="OpenTelemetry collector (OTLP), such as http://otel-collector:4318.",
    )
    telemetry_protocol: Literal["http/protobuf", "http/json", "grpc"] = Field(
        default="http/protobuf",
        validation_alias=AliasChoices("telemetry_protocol", "exporter_otlp_protocol"),
        description="http/protobuf (usually port 4318) or grpc (usually port 4317).",
    )
    telemetry_headers: SecretTable = Field(
        default={},
        validation_alias=AliasChoices("telemetry_headers", "exporter_otlp_headers"),
        description="Headers for the collector, a table or key=value,key=value.",
    )
    telemetry_headers_file: ConfiguredPath | None = Field(
        default=None, description="File with more headers, one per line, as name: value."
    )
    telemetry_attributes: TextTable = Field(
        default={},
        validation_alias=AliasChoices("telemetry_attributes", "resource_attributes"),
        description="Attributes of all exported data, a table or key=value,key=value.",
    )
    telemetry_sampler: Sampler | None = Field(
        default=None,
        validation_alias=AliasChoices("telemetry_sampler", "traces_sampler"),
        description="Which traces the node exports; all if absent.",
    )
    telemetry_sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0,
        validation_alias=AliasChoices("telemetry_sample_ratio", "traces_sampler_arg"),
        description="The fraction of traces that the ratio samplers keep.",
    )
    telemetry_prometheus: ListenAddress | None = Field(
        default=None,
        description="Where the node serves /metrics: a port of this host such as 9464, or an address such as "
        "0.0.0.0:9464.",
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

    @model_validator(mode="after")
    def _leases_fit_the_share(self) -> Self:
        resources = self.resources
        complete = self.offer.strategy == "whole" and not resources.nodes and resources.per_job is None
        if complete and self.schedulers.max_share < 1:
            raise ValueError(
                "schedulers.max_share: with the strategy whole, a lease is the complete worker, which is more than any "
                "share. Use the strategy flexible, or set resources.per_job or resources.nodes."
            )
        return self

    @field_validator("gateway_addresses")
    @classmethod
    def _names_a_supported_one(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if not any(_is_supported(address, info) for address in value):
            raise ValueError(
                "the node can use none of them; add one such as /ip4/203.0.113.50/tcp/4001 or "
                "/ip4/203.0.113.50/udp/4001/quic-v1"
            )
        return value

    @property
    def capacity(self) -> Resources:
        """The resources of the worker, as a message."""
        resources = self.resources
        return Resources(cpu=resources.cpu, memory=resources.memory, storage=resources.storage, gpu=resources.gpu)

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
