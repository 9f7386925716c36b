"""The state of a node at one moment, as the page and the command line show it. docs/status-page.md documents it.

Times are seconds since the epoch. All text that a peer, a scheduler or a job chose is escaped and cut. Lists are
bounded, and a number beside each says how many entries there are in all.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from hypha_messages.types import Resources

SCHEMA: Final = 1
STATUS_PATH: Final = "/status.json"
"""Where the node serves it, on the page and at its socket."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class Node(_Part):
    """The node. `lack` is what it lacks to be ready, and `silence` why it makes no offers, or None."""

    peer_id: str
    version: str
    runtime: Literal["process", "kubernetes"]
    since: float
    lack: str | None
    silence: str | None
    certificate_until: float
    certificate_problem: str | None
    executors: tuple[str, ...]
    strategy: str
    price: float
    floor: float


class NetworkState(_Part):
    """How the node is connected. `gateways` are the peer ids of connected ones. `reach` is None if it is not known."""

    gateways: tuple[str, ...]
    configured_gateways: tuple[str, ...]
    addresses: tuple[str, ...]
    reach: str | None
    reached: str
    remedy: str | None


class ResourceState(_Part):
    """One resource: cores, or GB."""

    name: str
    unit: str
    total: float
    leased: float


class LeaseState(_Part):
    """A lease. `accepted` is None for an offer, and `task_id` without a job."""

    id: str
    scheduler: str
    state: Literal["offered", "held", "ending"]
    executors: tuple[str, ...]
    resources: Resources
    price: float
    deadline: float
    accepted: float | None
    task_id: str | None
    reason: str


class LossCurve(_Part):
    """The loss by seconds since the node has known the job."""

    x: list[float]
    y: list[float]


class JobState(_Part):
    """A job. `deadline` is that of its lease, and `reason` why it failed or is ending.

    `total_batches` is what the job states, and `estimated_end` when they are done.
    """

    task_id: str
    job_id: str
    executor: str
    scheduler: str
    phase: Literal["starting", "running", "ending", "finished", "failed"]
    reason: str
    began: float
    ended: float | None
    deadline: float | None
    round: int | None
    samples: int
    samples_per_second: float | None
    rounds_per_hour: float | None
    batches: int
    total_batches: int | None
    estimated_end: float | None
    metrics: dict[str, float]
    loss: LossCurve


class RequestState(_Part):
    """A request, or `count` of one scheduler with the same answer. `scheduler` is empty if nobody verified it."""

    at: float
    scheduler: str
    executors: tuple[str, ...]
    resources: Resources
    bid: float
    count: int
    answer: Literal["offered", "accepted", "lapsed", "undelivered", "waiting", "passed", "refused", "none"]
    price: float | None
    reason: str


class PeerState(_Part):
    """A connected peer, by its best connection. Bytes are those of all its present connections."""

    peer_id: str
    role: Literal["gateway", "scheduler", "peer"]
    relayed: bool
    inbound: bool
    transport: str
    connections: int
    round_trip_s: float | None
    received_bytes: int
    sent_bytes: int


class Account(_Part):
    """What a scheduler has leased: `earned` by leases that ended, and `accruing` by those that go on."""

    scheduler: str
    leases: int
    leased_s: float
    earned: float
    accruing: float


class Earnings(_Part):
    """Agreed prices times leased seconds, in the network's own unit. Present leases add `per_s` in each second."""

    accounts: tuple[Account, ...]
    earned: float
    accruing: float
    per_s: float


class Snapshot(_Part):
    """The state of a node. `interval_s` is how often it is worth asking for another one."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    at: float
    interval_s: float
    node: Node
    network: NetworkState
    resources: tuple[ResourceState, ...]
    leases: tuple[LeaseState, ...]
    leases_total: int
    jobs: tuple[JobState, ...]
    jobs_total: int
    requests: tuple[RequestState, ...]
    peers: tuple[PeerState, ...]
    peers_total: int
    earnings: Earnings
