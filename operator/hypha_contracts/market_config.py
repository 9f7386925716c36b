"""The part of a node's configuration that decides which jobs it takes, and at which price."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hypha_messages.types import Amount, PeerId, Resources

PositiveAmount = Annotated[Amount, Field(gt=0)]
PositiveMs = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]
PositiveS = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
"""A part of all."""

MAX_NODE_KINDS: Final = 64
MAX_NODES_OF_KIND: Final = 10_000
MAX_LISTED_SCHEDULERS: Final = 1024


class Section(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class NodesConfig(Section):
    """Nodes of one kind."""

    count: Annotated[int, Field(ge=1, le=MAX_NODES_OF_KIND)] = Field(description="Number of nodes of this kind.")
    cpu: PositiveAmount = Field(description="Cores of one node.")
    memory: PositiveAmount = Field(description="GB of memory of one node.")
    storage: PositiveAmount = Field(description="GB of disk space of one node.")
    gpu: Amount = Field(default=0.0, description="GB of GPU memory of one node, all its devices together.")

    @property
    def each(self) -> Resources:
        """The resources of one node, as a message."""
        return Resources(**self.model_dump(exclude={"count"}))


class PerJobConfig(Section):
    """The most that one job may have. An absent amount is not limited."""

    cpu: PositiveAmount | None = None
    memory: PositiveAmount | None = None
    storage: PositiveAmount | None = None
    gpu: Amount | None = None


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
    per_job: PerJobConfig | None = Field(
        default=None, description="The most that one job may have: a table of cpu, memory, storage and gpu."
    )
    nodes: Annotated[list[NodesConfig], Field(max_length=MAX_NODE_KINDS)] = Field(
        default=[],
        description="Kinds of nodes that jobs run on: count, and of one node cpu, memory, storage and gpu. The worker "
        "then leases only what fits on its nodes. Without it, all resources count as one node.",
    )


class MinimumConfig(Section):
    """The least that a lease reserves, in the units of `ResourcesConfig`."""

    cpu: PositiveAmount = 1.0
    memory: PositiveAmount = 4.0
    storage: PositiveAmount = 20.0


class Terms(BaseModel):
    """The terms of the worker, in the node's configuration and in a HyphaWorker."""

    price: Amount = Field(
        default=100.0, description="The least that the worker asks for when it offers all its resources."
    )
    floor: Amount = Field(
        default_factory=lambda offer: min(100.0, offer.get("price", 100.0)),
        description="The worker ignores requests that bid less. A floor below price makes offers at price to "
        "schedulers that bid less but may accept more. Default: 100, or price if that is less.",
    )
    aggregate_needs_reach: bool = Field(
        default=True,
        description="Make offers for jobs of class aggregate only while peers can send bulk data to the node, because "
        "trainers push their updates to them (docs/networking.md).",
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


class SchedulersConfig(Section):
    """Which schedulers the worker serves."""

    allow: Annotated[list[PeerId], Field(max_length=MAX_LISTED_SCHEDULERS)] = Field(
        default=[], description="Peer ids of the only schedulers that get offers. Empty: all."
    )
    block: Annotated[list[PeerId], Field(max_length=MAX_LISTED_SCHEDULERS)] = Field(
        default=[], description="Peer ids of schedulers that get no offers. Leases that they hold go on."
    )
    max_share: Share = Field(
        default=1.0, description="The most of each resource that the leases of one scheduler may reserve; 0.5 is half."
    )


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
