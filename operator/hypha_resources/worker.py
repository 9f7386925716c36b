"""HyphaWorker: a worker node of a Hypha network whose jobs are pods of this namespace."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from hypha_contracts.times import DRAIN_S, KEEP_ENDED_S
from hypha_contracts.units import gigabytes, parse_quantity
from hypha_messages.types import Resources
from hypha_resources.addresses import PEER_ID_KEYS, Cidr, ExternalAddress, GatewayAddress, ListenAddress, PeerIdKey
from hypha_resources.common import Conditions, KeptSeconds, Name, Passthrough, PeerIdText, Quantity, Schema, Time, rules
from hypha_resources.job import Amounts, ExecutorRef

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(allow_inf_nan=False)]


class IssuerRef(Schema):
    """A cert-manager issuer."""

    name: Name
    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    group: str = "cert-manager.io"


class Identity(Schema):
    """Who the worker is: its peer id is its Ed25519 key."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "has(self.secretName) || has(self.issuerRef)",
                "set secretName (a Secret with tls.crt and tls.key), or issuerRef to have a certificate made",
            ),
            (
                "!has(self.issuerRef) || has(self.trustSecretName)",
                "issuerRef needs trustSecretName: the issuer's own ca.crt is not what the network trusts",
            ),
        )
    )

    secret_name: Name | None = Field(
        default=None,
        description="Secret with tls.crt and tls.key (Ed25519, PKCS#8); with issuerRef made, as <worker>-identity.",
    )
    issuer_ref: IssuerRef | None = Field(default=None, description="cert-manager issuer to get the certificate from.")
    trust_secret_name: Name | None = Field(
        default=None,
        description="Secret with ca.crt (the network's authorities) and maybe crl.pem; default: the identity's own.",
    )
    allow_peer_id_change: bool = Field(
        default=False, description="Accept a certificate with another key, which makes this another peer."
    )


class Expose(Schema):
    """How peers outside the cluster reach the worker directly."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.type == 'LoadBalancer' || !has(self.loadBalancerClass)",
                "loadBalancerClass is of Services of type LoadBalancer alone",
            ),
            ("self.type != 'HostPort' || !has(self.annotations)", "type HostPort makes no Service for annotations"),
        )
    )

    type: Literal["NodePort", "LoadBalancer", "HostPort"]
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        default=None, description="The outer port; by default the cluster chooses, for HostPort the listen port."
    )
    load_balancer_class: Annotated[str, Field(min_length=1, max_length=317)] | None = Field(
        default=None, description="Which load balancer, where the cluster has several; cannot be changed."
    )
    annotations: dict[str, str] = Field(default={}, description="Of the Service, for who makes the load balancer.")


class NetworkSpec(Schema):
    """Where the Hypha network is."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.expose) || self.expose.type != 'HostPort' || !has(self.listenAddresses) "
                    "|| self.listenAddresses.size() == 1"
                ),
                "expose of type HostPort needs exactly one of listenAddresses",
            ),
            (
                (
                    "(has(self.relayCircuit) ? self.relayCircuit : true) || has(self.expose) "
                    "|| (has(self.externalAddresses) && self.externalAddresses.size() > 0)"
                ),
                "nobody could reach this worker: set relayCircuit, expose or externalAddresses",
            ),
        )
    )

    gateways: Annotated[list[GatewayAddress], Field(min_length=1, max_length=64)] = Field(
        description="Gateways, with or without /p2p/<id>; one must be reachable."
    )
    listen_addresses: Annotated[list[ListenAddress], Field(min_length=1, max_length=16)] = Field(
        default=["/ip4/0.0.0.0/tcp/4001"], description="Where the pod accepts peers."
    )
    external_addresses: Annotated[list[ExternalAddress], Field(max_length=16)] = Field(
        default=[], description="Where others reach it; derived from expose when empty."
    )
    exclude_cidr: Annotated[list[Cidr], Field(max_length=256)] | None = Field(
        default=None, description="Networks whose addresses are not taken from peers; default: all reserved ones."
    )
    relay_circuit: bool = Field(default=True, description="Be reachable through the gateways.")
    expose: Expose | None = None


class Gpu(Schema):
    """The devices of this worker: Hypha trades their memory, Kubernetes counts them."""

    resource_name: Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[^/]+/[^/]+$")] = Field(
        default="nvidia.com/gpu", description="Extended resource, also a MIG profile or amd.com/gpu."
    )
    device_class_name: Name | None = Field(
        default=None, description="Claim devices of this DeviceClass (DRA) instead of the extended resource."
    )
    count: Annotated[int, Field(ge=1, le=1024)]
    memory: Quantity = Field(description="Memory of one device.")

    @property
    def memory_gb(self) -> float:
        """The same in the network's unit."""
        return gigabytes(self.memory)


class ResourcesSpec(Schema):
    """What all jobs of this worker may use together."""

    cpu: Quantity
    memory: Quantity
    storage: Quantity
    gpu: Gpu | None = None

    @property
    def capacity(self) -> Resources:
        """The same in the network's units: cores and GB."""
        return Resources(
            cpu=float(parse_quantity(self.cpu)),
            memory=gigabytes(self.memory),
            storage=gigabytes(self.storage),
            gpu=self.gpu.memory_gb * self.gpu.count if self.gpu else 0.0,
        )


class Offer(Schema):
    """What an offer says."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.floor) || self.floor <= (has(self.price) ? self.price : 100.0) "
                    "|| (has(self.strategy) && self.strategy == 'flexible')"
                ),
                "floor is above price: bids between the two would be refused though they pay the price; lower floor",
            ),
        )
    )

    price: Price = Field(default=100.0, description="The least that the whole worker costs (strategy whole).")
    floor: Price = Field(
        default_factory=lambda offer: min(100.0, offer.get("price", 100.0)),
        description="Bids below this are not answered. Default: 100, or price if that is less.",
    )
    strategy: Literal["flexible", "whole"] = Field(
        default="whole", description="whole: the entire worker; flexible: what was asked, at the bid."
    )


class Selection(Schema):
    """Which of several competing requests is answered first."""

    strategy: Literal["profit", "utilization", "affinity"] = "profit"
    schedulers: Annotated[dict[PeerIdKey, Weight], Field(json_schema_extra=PEER_ID_KEYS)] = Field(
        default={}, description="Affinity: peer id = preference."
    )
    executors: dict[str, Weight] = Field(default={}, description="Affinity: class/name or class = preference.")


class Leases(Schema):
    """How long resources are reserved."""

    duration_seconds: Annotated[int, Field(ge=5, le=3600)] = Field(
        default=30, description="From each renewal; a controller that is away longer than this loses its jobs."
    )


class Jobs(Schema):
    """What holds for every job."""

    allow_private_addresses: bool = Field(
        default=False, description="Let jobs fetch from private, local and metadata addresses."
    )
    hub_endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")] | None = Field(
        default=None, description="Where repositories of Hugging Face are fetched from; default: the public hub."
    )
    read_ahead: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Slices fetched before they are asked for."
    )
    start_patience_seconds: Annotated[int, Field(ge=10, le=3600)] = Field(
        default=60, description="How long a job may be kept from running until it is given up."
    )
    termination_grace_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=DRAIN_S, description="How long results may still be sent once the executor has ended."
    )
    ttl_seconds_after_finished: KeptSeconds = Field(
        default=KEEP_ENDED_S, description="How long an ended HyphaJob is kept."
    )


class Accelerate(Schema):
    """What `accelerate launch` is told."""

    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] = "no"


class Executor(Schema):
    """One kind of job that this worker runs, and how."""

    class_: Literal["train", "aggregate"] = Field(alias="class")
    name: Annotated[str, Field(min_length=1, max_length=253)]
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Default: the operator's trainer or parameter-server image."
    )
    command: list[str] | None = Field(
        default=None,
        description="Default: the image's own trainer or parameter server; {SOCKET_PATH} and the like are replaced.",
    )
    args: list[str] = Field(default=[], description="Added to the command; {SOCKET_PATH} and the like are replaced.")
    env: dict[str, str] = Field(default={}, description="Added to its environment.")
    accelerate: Accelerate = Accelerate()
    trust_remote_code: bool = Field(default=False, description="Run models that bring code of their own.")
    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="Kueue's local queue."
    )
    runtime_class_name: Name | None = Field(default=None, description="For example gvisor or kata.")
    template: Passthrough = Field(default={}, description="Pod template overlay (metadata, spec), merged by key.")
    allow_privileged_template: bool = Field(default=False, description="Let the template weaken what isolates the pod.")

    @property
    def key(self) -> tuple[str, str]:
        """What no two executors of a worker have in common."""
        return self.class_, self.name


class Telemetry(Schema):
    """Where OpenTelemetry goes."""

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")]
    protocol: Literal["http/protobuf"] = "http/protobuf"
    sampler: Literal["always_on", "always_off", "traceidratio", "parentbased_traceidratio"] = "parentbased_traceidratio"
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    attributes: dict[str, str] = Field(default={}, description="Attributes of everything exported.")


class Controller(Schema):
    """The pod that is the node."""

    image: str | None = Field(default=None, description="Default: the operator's worker image.")
    resources: Passthrough = Field(default={}, description="Container resources; default: small requests.")
    template: Passthrough = Field(default={}, description="Pod template overlay (metadata, spec), merged by key.")


class HyphaWorkerSpec(Schema):
    """What a worker should be."""

    identity: Identity
    network: NetworkSpec
    resources: ResourcesSpec
    offer: Offer = Offer()
    selection: Selection = Selection()
    leases: Leases = Leases()
    jobs: Jobs = Jobs()
    executors: Annotated[
        list[Executor],
        Field(
            min_length=1,
            max_length=32,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["class", "name"]},
        ),
    ]
    telemetry: Telemetry | None = None
    controller: Controller = Controller()
    image_pull_secrets: list[Name] = Field(default=[], description="For the controller and all jobs.")
    suspend: bool = Field(default=False, description="No new offers; running jobs finish.")

    def executor(self, class_: str, name: str) -> Executor | None:
        """The executor of this class and name."""
        return next((executor for executor in self.executors if executor.key == (class_, name)), None)


class VacantLease(Schema):
    """A lease that a scheduler holds and no job has taken yet; the next controller knows of it from here."""

    id: UUID
    scheduler: PeerIdText
    request_id: UUID
    executors: list[ExecutorRef]
    resources: Amounts


class Refusal(Schema):
    """Why a request for a worker was not taken up."""

    reason: str
    message: str


class Requests(Schema):
    """What the node said to the last hundred requests that it heard."""

    considered: int = 0
    refused: int = 0
    last_refusal: Refusal | None = None


class NodeStatus(Schema):
    """What the node says of itself; only its controller writes it."""

    peer_id: str | None = None
    gateways: list[str] = Field(default=[], description="Gateways it is connected with.")
    connected_gateways: int = 0
    listening: list[str] = Field(default=[], description="Where it accepts peers.")
    circuits: list[str] = Field(default=[], description="Where it is reached through gateways.")
    healthy: bool = False
    certificate_expires: Time | None = None
    problem: str | None = Field(default=None, description="Why its identity was refused.")
    allocated: Passthrough = Field(
        default={}, description="What leases reserve: cpu, memory, storage, gpu (GB, cores)."
    )
    active_leases: int = 0
    active_jobs: int = 0
    leases: list[VacantLease] | None = Field(default=None, description="Those without a job; HyphaJobs have theirs.")
    requests: Requests = Requests()
    pod_name: str | None = Field(default=None, description="Which controller pod said so.")


class HyphaWorkerStatus(Schema):
    """What a worker is."""

    observed_generation: int = 0
    conditions: Conditions = Field(default=[])
    peer_id: str | None = Field(default=None, description="The first one seen; another needs allowPeerIdChange.")
    capacity: Passthrough = Field(default={}, description="What it offers: cpu, memory, storage, gpu (GB, cores).")
    external_addresses: list[str] = Field(default=[], description="Where peers outside reach it.")
    node: NodeStatus = NodeStatus()
