"""The status of a HyphaWorker: what operator and node have observed of it."""

from uuid import UUID

from pydantic import Field

from hypha_resources.common import Conditions, Passthrough, PeerIdText, Schema, Text, Time
from hypha_resources.job import Amounts, ExecutorRef


class VacantLease(Schema):
    """A lease that a scheduler holds and that has no job yet. The next controller reads it from here."""

    id: UUID
    scheduler: PeerIdText
    request_id: UUID
    executors: list[ExecutorRef]
    resources: Amounts
    price: float = 0.0
    accepted: Time | None = None


class SchedulerAccount(Schema):
    """The ended leases of one scheduler, as bookkeeping. It is no payment."""

    scheduler: str = Field(description="Its peer id, or `other` for all beyond 20.")
    leases: int = Field(description="Number of leases.")
    leased_seconds: float = Field(description="Seconds from the acceptance of each lease to its end.")
    earned: float = Field(description="Sum of price times seconds of each lease, in the network's own unit.")


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
    reach: str | None = Field(
        default=None,
        description="How peers reach the node, as the condition Reachable explains: public, punchable, bulk_relay, "
        "limited_relay or none. Absent while no gateway observes the node.",
    )
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
    accounts: list[SchedulerAccount] | None = Field(
        default=None, description="What each scheduler has leased until now, counted when a lease ends."
    )
    counted_leases: list[UUID] | None = Field(
        default=None, description="The leases counted last, so that the next controller counts none of them again."
    )
    requests: Requests = Requests()
    pod_name: str | None = Field(default=None, description="The controller pod that wrote this.")


class Offering(Schema):
    """What the worker may sell, as the operator derives it from the cluster. The node obeys at once."""

    enabled: bool = Field(description="False while ExecutorsValid or JobsStart is False: the node makes no offers.")
    proven_at: Time | None = Field(
        default=None,
        description="When a job or a probe showed that this worker's executors start. It stays until jobs failed to "
        "start or executors changed since.",
    )
    limit: Amounts | None = Field(
        default=None,
        description="The most that all leases together may reserve now: spec.resources, cut down by the quotas of the "
        "namespace and by the nodes. Default: spec.resources.",
    )
    per_job: Amounts | None = Field(
        default=None, description="The most that one job may have, because its pod runs on one node. Default: limit."
    )


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
    offering: Offering | None = Field(
        default=None, description="What the worker may sell. Absent until the executors are validated: nothing."
    )
    node: NodeStatus = NodeStatus()
