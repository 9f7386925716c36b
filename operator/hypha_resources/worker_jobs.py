"""The part of a HyphaWorker with the settings of every job."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from hypha_contracts.node_config import Repositories
from hypha_contracts.proxies import Proxies
from hypha_contracts.times import DRAIN_S, KEEP_ENDED_S, KEEP_HYPHA_JOB_S
from hypha_contracts.units import parse_quantity
from hypha_resources.addresses import Cidr
from hypha_resources.common import KeptSeconds, Name, Passthrough, Quantity, Schema, SecretKey, rules


class TokenSecret(Schema):
    """A Secret with a token for the model hub."""

    name: Name = Field(
        description="A Secret of this namespace with a token of yours for the hub. Every job may use it for the "
        "repositories below, if its reference brings none. Only the bridge's container mounts it (docs/security.md)."
    )
    key: SecretKey = Field(default="token", description="Its key, whose value is the token.")


class HubToken(Schema):
    """A token of yours for the model hub. Every job may use it to read these repositories, if it brings none itself."""

    secret: TokenSecret
    repositories: Repositories = Field(description="The repositories, such as owner/name.")


def _check_bytes(text: str) -> str:
    if parse_quantity(text) < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return text


class Cache(Schema):
    """A volume with public files of the model hub, so that several jobs of one model download it once."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.maxBytes) || type(self.maxBytes) == int || !isQuantity(self.maxBytes)"
                    " || quantity(self.maxBytes).compareTo(quantity('1')) >= 0"
                ),
                "maxBytes must be at least 1",
            )
        )
    )

    claim: Name = Field(
        description="PersistentVolumeClaim of this namespace for the cache, which bridges alone mount. If jobs run on "
        "several nodes, it needs ReadWriteMany. The hub's hash of a file is checked at each use, and downloads with a "
        "token are never kept."
    )
    max_bytes: Annotated[Quantity, AfterValidator(_check_bytes)] = Field(
        default="100G",
        description="The most that all files may take together. Then the least recently used ones are removed.",
    )


class IpBlock(Schema):
    """A network."""

    cidr: Cidr = Field(description="The network, such as 10.20.0.0/16.")
    except_: Annotated[list[Cidr], Field(max_length=64)] = Field(
        default=[], alias="except", description="Networks within it that the rule leaves out."
    )


class EgressPeer(Schema):
    """Where a rule leads: a network, or pods."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
                "write ipBlock, or namespaceSelector and podSelector",
            )
        )
    )

    ip_block: IpBlock | None = None
    namespace_selector: Passthrough | None = Field(default=None, description="Namespaces by their labels.")
    pod_selector: Passthrough | None = Field(default=None, description="Pods by their labels.")


class EgressPort(Schema):
    """Ports of a rule."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.endPort) || self.endPort >= self.port", "endPort must not be less than port")
        )
    )

    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="The port, or the first of a range.")
    end_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(default=None, description="The last of a range.")
    protocol: Literal["TCP", "UDP", "SCTP"] = Field(default="TCP", description="The protocol.")


class EgressRule(Schema):
    """A rule in the form of a NetworkPolicy's egress."""

    to: Annotated[list[EgressPeer], Field(min_length=1, max_length=64)] = Field(
        description="Networks and pods that jobs may reach. The bridge fetches from a Service only if an ipBlock holds "
        "the Service's address, because it knows addresses alone."
    )
    ports: Annotated[list[EgressPort], Field(max_length=64)] = Field(
        default=[], description="Ports that jobs may reach there. Default: all ports."
    )


class Proxy(Proxies, Schema):
    """Proxies for all downloads of the bridge. The executor does not learn them, unless you name them in its env."""


class TrustBundle(Schema):
    """A ConfigMap with authorities that downloads trust besides the public ones."""

    name: Name = Field(
        description="A ConfigMap of this namespace with the authority of a proxy that intercepts TLS, or of a private "
        "mirror. The bridge trusts it besides the public ones; the executor finds it at /etc/hypha/trust/ca.crt."
    )
    key: SecretKey = Field(default="ca.crt", description="Its key, whose value is certificates in PEM.")


class JobStorage(Schema):
    """The volume of a job's work directory, of the size of the lease's storage."""

    storage_class_name: Name | None = Field(
        default=None,
        description="Make a volume of this StorageClass for each job, deleted with its pod, for jobs that need more "
        "than the disk of a node. Default: disk of the node.",
    )


class ContainerResources(Schema):
    """Requests and limits of a container."""

    requests: dict[str, Quantity] = Field(default={}, description="Amounts that the scheduler reserves.")
    limits: dict[str, Quantity] = Field(
        default={}, description="Amounts that the container cannot exceed. A quota on limits.cpu needs cpu here."
    )


class Jobs(Schema):
    """Settings of every job."""

    allow_private_addresses: bool = Field(
        default=False, description="Let jobs download from private, local and metadata addresses."
    )
    exclude_cidr: Annotated[list[Cidr], Field(max_length=64)] = Field(
        default=[],
        description="More networks that no job may reach, even with allowPrivateAddresses. If the cluster's pods, "
        "services or nodes have public addresses, name their networks here.",
    )
    egress: Annotated[list[EgressRule], Field(max_length=64)] = Field(
        default=[],
        description="More that jobs may reach, even in private networks and those of excludeCidr, for NetworkPolicy "
        "and bridge. The hub, the proxies and the controller need no rule.",
    )
    hub_endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")] | None = Field(
        default=None,
        description="Address from which bridges fetch Hugging Face repositories. Default: the public hub.",
    )
    proxy: Proxy | None = None
    trust_bundle: TrustBundle | None = None
    hub_token: HubToken | None = Field(default=None, description="A token of yours that jobs may use.")
    cache: Cache | None = None
    read_ahead: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Number of slices that a bridge fetches before its executor asks for them."
    )
    output_claim: Name | None = Field(
        default=None,
        description="PersistentVolumeClaim of this namespace for trained models and predictions, each job's in a "
        "directory of its own (docs/trainer.md, docs/inference.md). Default: they are deleted with their job.",
    )
    storage: JobStorage = JobStorage()
    bridge_resources: ContainerResources = Field(
        default=ContainerResources(),
        description="Resources of the bridge's container, added to its defaults: requests of 100m cpu and 256Mi "
        "memory, and a limit of 1Gi memory.",
    )
    disruption: Literal["Avoid", "Allow"] = Field(
        default="Avoid",
        description="Avoid: annotations of the pods and a PodDisruptionBudget keep the cluster autoscaler, Karpenter "
        "and drains of nodes from ending jobs. A drain then waits until the node's jobs have ended. Allow: neither.",
    )
    start_patience_seconds: Annotated[int, Field(ge=10, le=3600)] = Field(
        default=60,
        description="How long a job may be pending before the operator abandons it. If an autoscaler adds nodes, allow "
        "for the time that this takes.",
    )
    start_timeout_seconds: Annotated[int, Field(ge=10, le=86400)] = Field(
        default=1800,
        description="How long a job may take to start once its queue has admitted it. In this time images are pulled, "
        "and pods that the cluster took away are replaced.",
    )
    queue_timeout_seconds: Annotated[int, Field(ge=10, le=86400)] = Field(
        default=300,
        description="How long an executor's queue (queueName) may hold a job before the operator ends it. "
        "startPatienceSeconds counts from the moment at which the queue admits the job.",
    )
    max_duration_seconds: Annotated[int, Field(ge=10, le=2**31 - 1)] | None = Field(
        default=None,
        description="How long a job may run, from its dispatch. Then the node ends it. Default: as long as its lease.",
    )
    termination_grace_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=DRAIN_S, description="How long the bridge may still send results after the executor has ended."
    )
    ttl_seconds_after_finished: KeptSeconds = Field(
        default=KEEP_HYPHA_JOB_S,
        description="How long an ended HyphaJob is kept, at most 64 of a scheduler and 512 in all. Its status has the "
        "last lines of its executor.",
    )
    pod_ttl_seconds_after_finished: KeptSeconds = Field(
        default=KEEP_ENDED_S,
        description="How long the pod of an ended job is kept for kubectl logs, but no longer than its HyphaJob.",
    )

    @property
    def servers(self) -> tuple[str, ...]:
        """The URLs of the hub and the proxies, which jobs always reach."""
        proxies = (self.proxy.http, self.proxy.https) if self.proxy else ()
        return tuple(dict.fromkeys(filter(None, (self.hub_endpoint, *proxies))))
