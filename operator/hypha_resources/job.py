"""HyphaJob: one task that a worker runs under a lease. The worker's controller creates it, the operator runs it."""

from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import ConfigDict, Field

from hypha_contracts.text import without_hidden, without_url_secrets
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.job import ExecutorClass
from hypha_messages.types import Resources
from hypha_resources.common import Conditions, KeptSeconds, Name, Passthrough, PeerIdText, Schema, Text, Time, rules

Phase = Literal["Pending", "Starting", "Running", "Succeeded", "Failed"]

_ATOMIC: Final = {"x-kubernetes-map-type": "atomic"}
"""For an object that is written once. The API server then tracks one owner for it, not one for each of its fields."""

_FIXED: Final = rules(("self == oldSelf", "this field never changes: a HyphaJob is one task under one lease"))
"""For a field that never changes. The API server checks all rules at every change of the status. Each field has its own
rule, because a rule that looks up fields costs the API server much more."""


def _stays(*fields: str) -> tuple[str, str]:
    """Return the rule that optional fields are neither added nor removed."""
    rule = " && ".join(f"has(self.{field}) == has(oldSelf.{field})" for field in fields)
    return rule, f"{' and '.join(fields)} never change: a HyphaJob is one task under one lease"


class WorkerRef(Schema):
    """The HyphaWorker in the same namespace."""

    name: Name
    uid: Annotated[str, Field(max_length=64)]


class Lease(Schema):
    """The lease the job runs under."""

    model_config = ConfigDict(json_schema_extra=rules(_stays("price", "accepted")))

    id: UUID = Field(json_schema_extra=_FIXED)
    deadline: Time = Field(
        description="Each renewal moves it. The operator ends the job some time after it has passed."
    )
    price: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="The agreed price, in the network's own unit.", json_schema_extra=_FIXED
    )
    accepted: Time | None = Field(
        default=None, description="When the scheduler accepted the lease.", json_schema_extra=_FIXED
    )


class ExecutorRef(Schema):
    """An executor of the worker."""

    class_: ExecutorClass = Field(alias="class")
    name: Annotated[str, Field(min_length=1, max_length=253)]


class Amounts(Schema):
    """What the lease reserves, in the network's units: cores and GB."""

    cpu: Annotated[float, Field(ge=0)] = 0.0
    memory: Annotated[float, Field(ge=0)] = 0.0
    storage: Annotated[float, Field(ge=0)] = 0.0
    gpu: Annotated[float, Field(ge=0)] = 0.0

    @classmethod
    def of(cls, resources: Resources) -> "Amounts":
        """Convert from the network's message."""
        return cls(**resources.model_dump())

    @property
    def resources(self) -> Resources:
        """Convert to the network's message."""
        return Resources(**self.model_dump(by_alias=False))


class Cancel(Schema):
    """A request to end the job, with its reason."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]


class HyphaJobSpec(Schema):
    """The task. Only the controller, the lease's deadline and cancel can change."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _stays("config", "ttlSecondsAfterFinished"),
            ("!has(oldSelf.cancel) || has(self.cancel)", "cancel stays once it is set: the job is ending"),
        )
    )

    worker_ref: WorkerRef = Field(json_schema_extra=_FIXED | _ATOMIC)
    worker_peer_id: PeerIdText = Field(
        description="The bridge accepts a connector with this peer id only.", json_schema_extra=_FIXED
    )
    task_id: UUID = Field(json_schema_extra=_FIXED)
    job_id: UUID = Field(json_schema_extra=_FIXED)
    scheduler: PeerIdText = Field(json_schema_extra=_FIXED)
    controller: UUID | None = Field(
        default=None,
        description="The process of the worker's controller that owns the job: it launched the job or adopted it last. "
        "No other process changes the job.",
    )
    lease: Lease
    executor: ExecutorRef = Field(json_schema_extra=_FIXED | _ATOMIC)
    config: Passthrough = Field(
        default={},
        description="The job without its secrets. The Secret <name> holds the complete job.",
        json_schema_extra=_FIXED | _ATOMIC,
    )
    resources: Amounts = Field(json_schema_extra=_FIXED | _ATOMIC)
    ttl_seconds_after_finished: KeptSeconds = Field(default=KEEP_ENDED_S, json_schema_extra=_FIXED)
    cancel: Cancel | None = None


class Progress(Schema):
    """The progress of the job, which only the controller writes."""

    round: int | None = Field(default=None, description="The last round of which the job reported metrics.")
    batches: int = 0
    samples: int = 0
    samples_per_second: float | None = Field(default=None, description="Of the last seconds.")
    rounds_per_hour: float | None = Field(default=None, description="Of the last ten rounds.")
    total_batches: int | None = Field(
        default=None,
        description="Over how many batches the learning rate changes (training_steps), if the job states it. "
        "Its scheduler may end the job earlier or later.",
    )
    estimated_end: Time | None = Field(
        default=None, description="When totalBatches are done at the mean rate so far, if the job states them."
    )
    metrics: dict[str, float] = Field(default={}, description="The last value of each metric, such as loss.")


class Stage(Schema):
    """A stage of the job's start that is over, such as `pod scheduled`."""

    name: Annotated[str, Field(max_length=63)]
    start_time: Time
    end_time: Time


class HyphaJobStatus(Schema):
    """The state of the job."""

    phase: Phase = "Pending"
    reason: str | None = Field(default=None, description="Why the job is not running, or how it ended.")
    conditions: Conditions = Field(default=[])
    pod_name: str | None = None
    pod_uid: str | None = None
    node_name: str | None = None
    starting_since: Time | None = Field(
        default=None, description="Since when the job could start, without the time in a queue."
    )
    start_time: Time | None = Field(default=None, description="When the executor started.")
    completion_time: Time | None = None
    duration: str | None = Field(default=None, description="From startTime to completionTime, such as `2h5m`.")
    last_lines: list[Text] = Field(default=[], description="The last lines of the executor's output.")
    progress: Progress | None = None
    stages: Annotated[list[Stage], Field(max_length=8)] = Field(
        default=[], description="The stages of the start of the job's pod, for the trace of the job."
    )


def redacted(value: Any) -> Any:
    """Return a job's configuration without tokens and hidden characters, and with only scheme and host of its URIs."""
    if isinstance(value, str):
        return without_hidden(without_url_secrets(value))
    if isinstance(value, dict):
        cleaned = {without_hidden(key): redacted(item) for key, item in value.items() if not (key == "token" and item)}
        if "dataset" in value:  # the connector compares its name with what the job asks for
            cleaned["dataset"] = without_hidden(str(value["dataset"]))
        if value.get("type") == "uri" and isinstance(value.get("value"), str):
            cleaned["value"] = without_hidden(_scheme_and_host(value["value"]))
        return cleaned
    return [redacted(item) for item in value] if isinstance(value, list) else value


def _scheme_and_host(uri: str) -> str:
    try:
        address = urlsplit(uri)
    except ValueError:  # not an address that could be fetched, so any part may be a secret
        return ""
    return f"{address.scheme}://{address.hostname}" if address.hostname else ""
