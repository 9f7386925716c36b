"""HyphaWorker: a worker node of a Hypha network. Its jobs are pods in the same namespace."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from hypha_contracts.market_config import Terms, Weight
from hypha_contracts.node_config import HostName, Sampler
from hypha_contracts.units import gigabytes, parse_quantity
from hypha_messages.types import Resources
from hypha_resources.addresses import PEER_ID_KEYS, PeerIdKey
from hypha_resources.common import Name, Passthrough, Quantity, Schema, SecretKey, Time, rules
from hypha_resources.common_metadata import Annotations, Labels
from hypha_resources.worker_executors import Executor
from hypha_resources.worker_jobs import Jobs
from hypha_resources.worker_market import NodeKind, NodeKinds, PerJob, Schedulers
from hypha_resources.worker_network import NetworkSpec


class IssuerRef(Schema):
    """A cert-manager issuer."""

    name: Name = Field(
        description="cert-manager issuer of the certificate: Ed25519, PKCS#8, with a key that is never rotated, "
        "because the key determines the peer id."
    )
    kind: Literal["Issuer", "ClusterIssuer"] = Field(default="Issuer", description="Kind of the issuer.")
    group: str = Field(default="cert-manager.io", description="API group of the issuer.")


class Identity(Schema):
    """The worker's identity: its Ed25519 key determines its peer id.

    You may change certificates and revocation lists at any time, and the node reloads them without a restart. The
    operator itself cannot read Secrets.
    """

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
        description="Secret with tls.crt (the node's certificate, then intermediates) and tls.key (Ed25519, PKCS#8). "
        "Without trustSecretName it also holds ca.crt and maybe crl.pem. Default: with issuerRef <worker>-identity.",
    )
    issuer_ref: IssuerRef | None = Field(default=None, description="cert-manager issuer of the certificate.")
    trust_secret_name: Name | None = Field(
        default=None,
        description="Secret with ca.crt (the network's authorities) and maybe crl.pem (revoked certificates). Required "
        "with issuerRef. Default: the identity's Secret.",
    )
    allow_peer_id_change: bool = Field(
        default=False,
        description="Accept a certificate with another key. The worker then becomes another peer and loses its leases.",
    )


class CelSelector(Schema):
    """A condition on a device, in CEL."""

    expression: Annotated[str, Field(min_length=1, max_length=10240)] = Field(
        description="Such as device.attributes['gpu.nvidia.com'].productName == 'NVIDIA A100'."
    )


class DeviceSelector(Schema):
    """A condition on a device, in the form of a ResourceClaim."""

    cel: CelSelector


class Gpu(Schema):
    """The GPUs of this worker. Hypha trades their memory, Kubernetes counts devices."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.resourceName) || !has(self.deviceClassName)",
                "set resourceName (a device plugin) or deviceClassName (DRA), not both",
            ),
            (
                "!has(self.selectors) || has(self.deviceClassName)",
                "selectors choose among the devices of a DeviceClass: set deviceClassName",
            ),
        )
    )

    resource_name: Annotated[str, Field(min_length=1, max_length=317, pattern=r"^[^/]+/[^/]+$")] = Field(
        default="nvidia.com/gpu", description="The device plugin's resource, also a MIG profile or amd.com/gpu."
    )
    device_class_name: Name | None = Field(
        default=None, description="Claim devices of this DeviceClass (DRA) instead of the extended resource."
    )
    selectors: Annotated[list[DeviceSelector], Field(max_length=32)] = Field(
        default=[],
        description="Claim only devices for which all these CEL expressions hold, with deviceClassName. Use them if "
        "the class has devices of different sizes.",
    )
    count: Annotated[int, Field(ge=1, le=1024)] = Field(description="Number of devices.")
    memory: Quantity = Field(
        description="Memory of one device. The network trades GPU memory, and Kubernetes counts devices. A job gets "
        "the smallest number of devices that holds the memory it asks for, and its lease reserves and reports the full "
        "memory of these devices."
    )

    @property
    def memory_gb(self) -> float:
        """The memory of one device in the network's unit, GB."""
        return gigabytes(self.memory)


class ResourcesSpec(Schema):
    """What all jobs of this worker may use together.

    The requests and limits of a job's pod are what its lease reserves. Offer only what the cluster really has, because
    a job that cannot be scheduled loses its lease.
    """

    cpu: Quantity = Field(description="Cores.")
    memory: Quantity = Field(description="Memory.")
    storage: Quantity = Field(description="Disk space.")
    gpu: Gpu | None = None
    per_job: PerJob | None = None
    nodes: NodeKinds = Field(
        default=[],
        description="The kinds of nodes that jobs of this worker run on. It then sells only jobs that fit on these "
        "nodes together, within the amounts above. Default: all resources count as one node, so without perJob one job "
        "may ask for more than any node of the cluster has.",
    )

    @property
    def capacity(self) -> Resources:
        """The resources in the network's units: cores and GB."""
        return Resources(**amounts(self), gpu=self.gpu.memory_gb * self.gpu.count if self.gpu else 0.0)


class Minimum(Schema):
    """The least that a lease reserves, if the worker has that much."""

    cpu: Quantity = Field(default="1", description="The fewest cores that a lease reserves.")
    memory: Quantity = Field(default="4G", description="The least memory that a lease reserves.")
    storage: Quantity = Field(
        default="20G",
        description="The least disk space that a lease reserves. A request for less than these, or for an unspecified "
        "amount (0), is raised to them, or to all that the worker has. A lease with a GPU reserves at least 1 GB of "
        "GPU memory.",
    )

    @property
    def amounts(self) -> dict[str, float]:
        """The amounts in the network's units: cores and GB."""
        return amounts(self)


def amounts(quantities: ResourcesSpec | Minimum | NodeKind | PerJob) -> dict[str, float]:
    """Return the cores and GB that are set, by resource, without GPUs."""
    texts = {"cpu": quantities.cpu, "memory": quantities.memory, "storage": quantities.storage}
    return {
        name: float(parse_quantity(text)) if name == "cpu" else gigabytes(text)
        for name, text in texts.items()
        if text is not None
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
        description="whole: one job gets the complete worker, with resources.nodes as much as the smallest node that "
        "it fits on has, with resources.perJob at most that. flexible: each job gets what it asks for (GPUs as "
        "complete devices), at its bid, while capacity is free.",
    )
    minimum: Minimum = Field(
        default=Minimum(),
        description="The least that a lease reserves.",
    )


class Selection(Schema):
    """Which of several competing requests the worker answers first."""

    strategy: Literal["profit", "utilization", "affinity"] = Field(
        default="profit",
        description="profit: the best-paying request first. utilization: the one that uses the largest share of the "
        "free capacity. affinity: the preferred one; a request for several executors counts as its least preferred "
        "one. Each strategy rates what the lease would reserve.",
    )
    schedulers: Annotated[dict[PeerIdKey, Weight], Field(json_schema_extra=PEER_ID_KEYS)] = Field(
        default={}, description="For affinity: peer id = weight."
    )
    executors: dict[str, Weight] = Field(
        default={}, description="For affinity: class/name or class of an executor = weight."
    )


class Leases(Schema):
    """How long resources are reserved."""

    duration_seconds: Annotated[int, Field(ge=5, le=3600)] = Field(
        default=30,
        description="Lease duration, counted from each renewal. If the controller is away for longer than this plus "
        "one minute, the operator ends its jobs. Until then, their bridges and executors wait for it. Allow enough "
        "time to reschedule the controller's pod.",
    )


class HeadersSecret(Schema):
    """A Secret with headers for the collector."""

    name: Name = Field(description="A Secret of this namespace.")
    key: SecretKey = Field(
        default="headers", description="Its key, whose value has one header per line, as name: value."
    )


class Telemetry(Schema):
    """The OpenTelemetry collector (docs/telemetry.md)."""

    endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https?://.+$")] = Field(
        description="Address of the collector, such as http://otel-collector:4318."
    )
    protocol: Literal["http/protobuf", "grpc"] = Field(
        default="http/protobuf", description="Collectors usually serve it on port 4318, and grpc on port 4317."
    )
    headers_secret: HeadersSecret | None = Field(default=None, description="Headers such as Authorization.")
    sampler: Sampler = Field(default="parentbased_traceidratio", description="Which traces are recorded.")
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1.0, description="Ratio for the two samplers with traceidratio."
    )
    attributes: dict[str, str] = Field(default={}, description="Attributes of all exported data.")


class StatusPage(Schema):
    """A page that shows the state of the worker in a browser (docs/status-page.md). It has no password."""

    enabled: bool = Field(description="Serve the page.")
    from_: Annotated[list[Passthrough], Field(max_length=32)] = Field(
        default=[],
        alias="from",
        description="Who may read the page at the Service <worker>-status, port 8081, as in the field from of a "
        "NetworkPolicy, such as the pods of a proxy that asks for a password. Default: nobody, and no Service. Then "
        "kubectl port-forward leads to the page.",
    )
    hosts: Annotated[list[HostName], Field(max_length=64)] = Field(
        default=[],
        description="Names under which browsers open the page besides those of the Service, such as the host of an "
        "Ingress.",
    )


class Controller(Schema):
    """The pod that runs the node."""

    image: str | None = Field(default=None, description="The node's image. Default: the operator's.")
    resources: Passthrough = Field(
        default={},
        description="Resources of the pod's container, through which the bulk data of all jobs passes. Your value "
        "replaces the default completely, so set a memory limit. Default: small requests, memory limit 2Gi.",
    )
    template: Passthrough = Field(
        default={},
        description="Overlay for the pod template (metadata, spec), with lists merged by name. The pod leaves an "
        "unreachable node after 10 s, unless you set tolerations here.",
    )


class HyphaWorkerSpec(Schema):
    """The desired state of a worker.

    The running node takes over changes of offer, selection, schedulers, leases, resources, suspend, suspendDeadline and
    the time limits of jobs. Other changes of its configuration replace its pod.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                (
                    "!has(self.schedulers) || !has(self.schedulers.maxShare) || self.schedulers.maxShare >= 1.0 || "
                    "(has(self.offer) && has(self.offer.strategy) && self.offer.strategy == 'flexible') || "
                    "has(self.resources.perJob) || (has(self.resources.nodes) && self.resources.nodes.size() > 0)"
                ),
                (
                    "schedulers.maxShare: with the strategy whole, a lease is the complete worker, which is more than "
                    "any share; use the strategy flexible, or set resources.perJob or resources.nodes"
                ),
            ),
        )
    )

    identity: Identity
    network: NetworkSpec
    resources: ResourcesSpec
    offer: Offer = Offer()
    selection: Selection = Selection()
    schedulers: Schedulers = Schedulers()
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
    status_page: StatusPage | None = None
    controller: Controller = Controller()
    common_labels: Labels = Field(
        default={},
        description="Labels of every object that the worker makes, its pods and those of its jobs included. An add-on "
        "that acts on such a label acts on all of them.",
    )
    common_annotations: Annotations = Field(
        default={}, description="Annotations of every object that the worker makes, pods included."
    )
    image_pull_secrets: list[Name] = Field(default=[], description="Names of Secrets, for the controller and all jobs.")
    suspend: bool = Field(default=False, description="Make no new offers. Running jobs finish.")
    suspend_deadline: Time | None = Field(
        default=None,
        description="While suspend is true, when the node ends the jobs that still run and notifies their schedulers, "
        "such as 2030-01-31T08:00:00Z. Default: they run to their end.",
    )

    def executor(self, class_: str, name: str) -> Executor | None:
        """The executor of this class and name."""
        return next((executor for executor in self.executors if executor.key == (class_, name)), None)
