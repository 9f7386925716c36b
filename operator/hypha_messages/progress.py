"""`/hypha-progress/0.0.1`: the progress of a job, and the scheduler's next instruction."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from hypha_messages.cbor import Single
from hypha_messages.protocol import Plain, Protocol, untag
from hypha_messages.types import Message, OmitsNone, Unsigned32, Unsigned64, Uuid


class Status(Message):
    """One batch is complete."""

    batch_size: Unsigned32


class Metrics(Message):
    """The metrics of a round, by name."""

    round: Unsigned32
    metrics: Annotated[dict[str, Single], Field(max_length=256)]


class PredictedSlice(Message):
    """The predictions of a slice have arrived at their peers, or are kept. Only inference jobs report it."""

    index: Unsigned64
    samples: Unsigned32


class Progress(Message):
    """One step of a job: a batch's status, a round's metrics, a predicted slice, or a stage of an outer step."""

    status: Status | None = None
    metrics: Metrics | None = None
    predicted: PredictedSlice | None = None
    stage: Literal["update", "updated", "update-received"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _untag(cls, value: Any) -> Any:
        tag, payload = untag(value)
        if payload is None:
            return {"stage": tag}
        if tag in ("status", "metrics", "predicted", "stage"):
            return {tag: payload}
        raise ValueError(f"unknown progress {tag!r}")

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> Any:
        if self.stage is not None:
            return self.stage
        return {key: value for key, value in serialize(self).items() if value is not None}


class ReportProgress(Message):
    """Worker to scheduler: progress of a job."""

    job_id: Uuid
    progress: Progress


class ProgressResponse(OmitsNone):
    """Scheduler to worker: continue, or run `counter` more batches and then send the update, or stop."""

    type: Literal["Ok", "Continue", "ScheduleUpdate", "Done", "Error"]
    counter: Unsigned32 | None = None

    @model_validator(mode="after")
    def _counter_belongs_to_schedule_update(self) -> "ProgressResponse":
        if (self.counter is not None) != (self.type == "ScheduleUpdate"):
            raise ValueError("ScheduleUpdate needs a counter, and other types have none")
        return self


PROGRESS: Final = Protocol("/hypha-progress/0.0.1", request=Plain(ReportProgress), response=Plain(ProgressResponse))
