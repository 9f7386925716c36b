"""HyphaWorker: a worker node of a Hypha network. Its jobs are pods in the same namespace."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from hypha_contracts.node_config import Terms, Weight
from hypha_contracts.times import DRAIN_S, KEEP_ENDED_S
from hypha_contracts.units import gigabytes, parse_quantity
from hypha_messages.job import ExecutorClass
from hypha_messages.types import Resources
from hypha_resources.addresses import PEER_ID_KEYS, Cidr, ExternalAddress, GatewayAddress, ListenAddress, PeerIdKey
from hypha_resources.common import (
    Conditions,
    KeptSeconds,
    Name,
    Passthrough,
    PeerIdText,
    Quantity,
    Schema,
    Text,
    Time,
    rules,
)
from hypha_resources.job import Amounts, ExecutorRef


class IssuerRef(Schema):
    """A cert-manager issuer."""

    name: Name
    kind: Literal["Issuer", "ClusterIssuer"] = "Issuer"
    group: str = "cert-manager.io"


class Identity(Schema):
    """The worker's identity: its Ed25519 key determines its peer id."""

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
        description="Secret with tls.crt and tls.key (Ed25519, PKCS#8). Default with issuerRef: <worker>-identity.",
    )
    issuer_ref: IssuerRef | None = Field(default=None, description="cert-manager issuer of the certificate.")
    trust_secret_name: Name | None = Field(
        default=None,
        description="Secret with ca.crt (the network's authorities) and maybe crl.pem. Default: the identity's Secret.",
    )
    allow_peer_id_change: bool = Field(
        default=False, description="Accept a certificate with another key, which changes the peer id."
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
        default=None,
        description="The outer port. Default: a port that the cluster chooses, or the listen port for HostPort.",
    )
    load_balancer_class: Annotated[str, Field(min_length=1, max_length=317)] | None = Field(
        default=None, description="The class of load balancer, if the cluster has several. It cannot be changed."
    )
    annotations: dict[str, str] = Field(
        default={}, description="Annotations of the Service, for the load balancer's controller."
    )


class NetworkSpec(Schema):
    """How the worker reaches the Hypha network, and how peers reach the worker."""

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
        default=["/ip4/0.0.0.0/tcp/4001"], description="Addresses at which the pod accepts peers."
    )
    external_addresses: Annotated[list[ExternalAddress], Field(max_length=16)] = Field(
        default=[], description="Addresses at which peers reach the worker. Default: derived from expose."
    )
    exclude_cidr: Annotated[list[Cidr], Field(max_length=256)] | None = Field(
        default=None,
        description="Networks in which the worker ignores addresses of peers. Default: all reserved networks.",
    )
    relay_circuit: bool = Field(default=True, description="Be reachable through the gateways.")
    expose: Expose | None = None


class Gpu(Schema):
    """The GPUs of this worker. Hypha trades their memory, Kubernetes counts devices."""

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
        """The memory of one device in the network's unit, GB."""
        return gigabytes(self.memory)


class ResourcesSpec(Schema):
    """What all jobs of this worker may use together."""

    cpu: Quantity
    memory: Quantity
    storage: Quantity
    gpu: Gpu | None = None

    @property
    def capacity(self) -> Resources:
        """The resources in the network's units: cores and GB."""
        return Resources(**_amounts(self), gpu=self.gpu.memory_gb * self.gpu.count if self.gpu else 0.0)


class Minimum(Schema):
    """The least that a lease reserves, if the worker has that much."""

    cpu: Quantity = "1"
    memory: Quantity = "4G"
    storage: Quantity = "20G"

    @property
    def amounts(self) -> dict[str, float]:
        """The amounts in the network's units: cores and GB."""
        return _amounts(self)


def _amounts(quantities: ResourcesSpec | Minimum) -> dict[str, float]:
    return {
        "cpu": float(parse_quantity(quantities.cpu)),
        "memory": gigabytes(quantities.memory),
        "storage": gigabytes(quantities.storage),
    }


class Offer(Terms, Schema):
    """The terms of an offer."""

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

    strategy: Literal["flexible", "whole"] = Field(
        default="whole",
        description="whole: offer the complete worker; flexible: offer the requested resources at the bid.",
    )
    minimum: Minimum = Field(
        default=Minimum(),
        description="The least that a lease reserves. Requests for less, or for an unspecified amount (0), are raised "
        "to it.",
    )


class Selection(Schema):
    """Which of several competing requests the worker answers first."""

    strategy: Literal["profit", "utilization", "affinity"] = "profit"
    schedulers: Annotated[dict[PeerIdKey, Weight], Field(json_schema_extra=PEER_ID_KEYS)] = Field(
        default={}, description="Affinity: peer id = preference."
    )
    executors: dict[str, Weight] = Field(
        default={}, description="Affinity: class/name or class of an executor = preference."
    )


class Leases(Schema):
    """How long resources are reserved."""

    duration_seconds: Annotated[int, Field(ge=5, le=3600)] = Field(
        default=30,
        description="Lease duration, counted from each renewal. If the controller is away for longer than this plus "
        "one minute, the operator ends its jobs.",
    )


class Jobs(Schema):
    """Settings of every job."""

    allow_private_addresses: bool = Field(
        default=False, description="Let jobs download from private, local and metadata addresses."
    )
    exclude_cidr: Annotated[list[Cidr], Field(max_length=64)] = Field(
        default=[],
        description="More networks that jobs may not reach: name pod, service and node networks with public addresses.",
    )
    hub_endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")] | None = Field(
        default=None, description="Address of the Hugging Face hub. Default: the public hub."
    )
    read_ahead: Annotated[int, Field(ge=0, le=64)] = Field(
        default=1, description="Slices fetched before the executor asks for them."
    )
    start_patience_seconds: Annotated[int, Field(ge=10, le=3600)] = Field(
        default=60, description="How long a job may be pending before the operator ends it."
    )
    termination_grace_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=DRAIN_S, description="How long the bridge may send results after the executor has ended."
    )
    ttl_seconds_after_finished: KeptSeconds = Field(
        default=KEEP_ENDED_S, description="How long an ended HyphaJob is kept."
    )


class Accelerate(Schema):
    """Options of `accelerate launch`."""

    mixed_precision: Literal["no", "fp16", "bf16", "fp8"] = "no"


class Executor(Schema):
    """One kind of job that this worker runs, and how."""

    class_: ExecutorClass = Field(alias="class")
    name: Annotated[str, Field(min_length=1, max_length=253)]
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        default=None, description="Default: the operator's trainer or parameter-server image."
    )
    command: list[str] | None = Field(
        default=None,
        description="Default: the image's trainer or parameter server. Placeholders such as {SOCKET_PATH} "
        "are replaced.",
    )
    args: list[str] = Field(
        default=[], description="Added to the command. Placeholders such as {SOCKET_PATH} are replaced."
    )
    env: dict[str, str] = Field(default={}, description="Added to the executor's environment.")
    accelerate: Accelerate = Accelerate()
    trust_remote_code: bool = Field(default=False, description="Run models that contain code.")
    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = Field(
        default=None, description="Local queue of Kueue."
    )
    runtime_class_name: Name | None = Field(default=None, description="For example gvisor or kata.")
    template: Passthrough = Field(default={}, description="Pod template overlay (metadata, spec), merged by key.")
    allow_privileged_template: bool = Field(
        default=False, description="Let the template weaken the isolation of the pod."
    )

    @property
    def key(self) -> tuple[str, str]:
        """The class and name, which are unique among the executors of a worker."""
        return self.class_, self.name


class Telemetry(Schema):
    """The OpenTelemetry collector."""

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")]
    protocol: Literal["http/protobuf"] = "http/protobuf"
    sampler: Literal["always_on", "always_off", "traceidratio", "parentbased_traceidratio"] = "parentbased_traceidratio"
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    attributes: dict[str, str] = Field(default={}, description="Attributes of all exported data.")


class Controller(Schema):
    """The pod that runs the node."""

    image: str | None = Field(default=None, description="Default: the operator's worker image.")
    resources: Passthrough = Field(default={}, description="Container resources; default: small requests.")
    template: Passthrough = Field(default={}, description="Pod template overlay (metadata, spec), merged by key.")


class HyphaWorkerSpec(Schema):
    """The desired state of a worker."""

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
    suspend: bool = Field(default=False, description="Make no new offers. Running jobs finish.")

    def executor(self, class_: str, name: str) -> Executor | None:
        """The executor of this class and name."""
        return next((executor for executor in self.executors if executor.key == (class_, name)), None)


class VacantLease(Schema):
    """A lease that a scheduler holds and that has no job yet. The next controller reads it from here."""

    id: UUID
    scheduler: PeerIdText
    request_id: UUID
    executors: list[ExecutorRef]
    resources: Amounts


class Refusal(Schema):
    """Why the node refused a request for a worker."""

    reason: str
    message: Text


class Requests(Schema):
    """How the node judged the last hundred requests that it received."""

    considered: int = 0
    refused: int = 0
    last_refusal: Refusal | None = None


class NodeStatus(Schema):
    """The state of the node, which only the controller writes."""

    peer_id: str | None = None
    gateways: list[Text] = Field(default=[], description="Gateways to which the node is connected.")
    connected_gateways: int = 0
    listening: list[Text] = Field(default=[], description="Addresses at which the node accepts peers.")
    circuits: list[Text] = Field(default=[], description="Addresses at which peers reach the node through gateways.")
    healthy: bool = False
    certificate_expires: Time | None = None
    problem: Text | None = Field(default=None, description="Why the node refused its identity.")
    allocated: Passthrough = Field(
        default={}, description="Resources that leases reserve: cpu (cores), memory, storage and gpu (GB)."
    )
    active_leases: int = 0
    active_jobs: int = 0
    leases: list[VacantLease] | None = Field(
        default=None, description="Leases without a job. HyphaJobs hold the others."
    )
    requests: Requests = Requests()
    pod_name: str | None = Field(default=None, description="The controller pod that wrote this.")


class HyphaWorkerStatus(Schema):
    """The observed state of a worker."""

    observed_generation: int = 0
    conditions: Conditions = Field(default=[])
    peer_id: str | None = Field(
        default=None, description="The first observed peer id. Another one needs allowPeerIdChange."
    )
    capacity: Passthrough = Field(
        default={}, description="Resources that the worker offers: cpu (cores), memory, storage and gpu (GB)."
    )
    external_addresses: list[str] = Field(
        default=[], description="Addresses at which peers outside the cluster reach the worker."
    )
    node: NodeStatus = NodeStatus()
