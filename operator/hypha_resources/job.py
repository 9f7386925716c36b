"""HyphaJob: one task that a worker runs under a lease. Its controller creates it, its operator runs it."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.types import Resources
from hypha_resources.common import Conditions, KeptSeconds, Name, Passthrough, PeerIdText, Schema, Time, rules

Phase = Literal["Pending", "Starting", "Running", "Succeeded", "Failed"]
TERMINAL: Final = frozenset({"Succeeded", "Failed"})
REPORTED: Final = "Reported"
"""The condition by which the node says that the end of the job has been taken note of."""


class WorkerRef(Schema):
    """The HyphaWorker, in the same namespace."""

    name: Name
    uid: Annotated[str, Field(max_length=64)]


class Lease(Schema):
    """The lease the job runs under."""

    id: UUID
    deadline: Time = Field(description="Moves with each renewal; some time after it passed the job is ended.")


class ExecutorRef(Schema):
    """An executor of the worker."""

    class_: Literal["train", "aggregate"] = Field(alias="class")
    name: Annotated[str, Field(min_length=1, max_length=253)]


class Amounts(Schema):
    """What the lease reserves: cores and GB, as the network counts."""

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
        """The same as the network's message."""
        return Resources(**self.model_dump(by_alias=False))


class Cancel(Schema):
    """That the job is to end, and why."""

    reason: Annotated[str, Field(min_length=1, max_length=1024)]


def _never_changes(field: str) -> tuple[str, str]:
    present = f"has(self.{field})"
    same = f"{present} == has(oldSelf.{field}) && (!{present} || self.{field} == oldSelf.{field})"
    return same, f"{field} never changes: a HyphaJob is one task under one lease"


class HyphaJobSpec(Schema):
    """What runs. Nothing but the controller, the lease's deadline and cancel ever changes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *map(
                _never_changes,
                (
                    *("workerRef", "workerPeerId", "taskId", "jobId", "scheduler", "executor", "config", "resources"),
                    "ttlSecondsAfterFinished",
                ),
            ),
            ("self.lease.id == oldSelf.lease.id", "lease.id never changes: a HyphaJob is one task under one lease"),
            ("!has(oldSelf.cancel) || has(self.cancel)", "cancel stays once it is set: the job is ending"),
        )
    )

    worker_ref: WorkerRef
    worker_peer_id: PeerIdText = Field(description="By which the bridge knows the connector it talks to.")
    task_id: UUID
    job_id: UUID
    scheduler: PeerIdText
    controller: UUID | None = Field(
        default=None,
        description="The process of the worker's controller that answers for the job: who launched it, or the latest "
        "to adopt it. No other one changes it.",
    )
    lease: Lease
    executor: ExecutorRef
    config: Passthrough = Field(default={}, description="The job without its secrets; the Secret <name> has it whole.")
    resources: Amounts
    ttl_seconds_after_finished: KeptSeconds = KEEP_ENDED_S
    cancel: Cancel | None = None


class Progress(Schema):
    """How far the job is; only the controller writes it."""

    round: int | None = None
    batches: int = 0
    samples: int = 0
    samples_per_second: float | None = None
    metrics: dict[str, float] = Field(default={}, description="The last of each, such as loss.")


class HyphaJobStatus(Schema):
    """What became of it."""

    phase: Phase = "Pending"
    reason: str | None = Field(default=None, description="Why it is not running, or how it ended.")
    conditions: Conditions = Field(default=[])
    pod_name: str | None = None
    pod_uid: str | None = None
    node_name: str | None = None
    start_time: Time | None = Field(default=None, description="When the executor started.")
    completion_time: Time | None = None
    last_lines: list[str] = Field(default=[], description="What the executor said last, if it failed.")
    progress: Progress | None = None


def redacted(value: Any) -> Any:
    """Return a job's configuration without secrets: no tokens, and of addresses only what is before user and query."""
    if isinstance(value, dict):
        cleaned = {key: redacted(item) for key, item in value.items() if not (key == "token" and item)}
        if value.get("type") == "uri" and isinstance(value.get("value"), str):
            cleaned["value"] = _without_credentials(value["value"])
        return cleaned
    return [redacted(item) for item in value] if isinstance(value, list) else value


def _without_credentials(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    if not separator:  # nothing that could be fetched, nor told apart
        return ""
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path
