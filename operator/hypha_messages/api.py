"""`/hypha-api/0.0.1`: offers, leases, jobs and slices."""

from typing import Any, ClassVar, Final, Literal

from pydantic import model_serializer, model_validator

from hypha_messages.job import JobSpec
from hypha_messages.protocol import Protocol, Tagged, untag
from hypha_messages.types import Amount, Message, PeerId, Resources, SystemTime, Unsigned64, Uuid, peer_id_to_bytes


class WorkerOffer(Message):
    """Worker to scheduler: a temporary lease (id, timeout) in response to a request, and its price."""

    id: Uuid
    request_id: Uuid
    price: Amount
    resources: Resources
    timeout: SystemTime


class WorkerOfferAccepted(Message):
    """Scheduler to worker: the offer has arrived. To accept the offer, the scheduler renews its lease."""


class RenewLease(Message):
    """Scheduler to worker: renew this lease."""

    id: Uuid


class DispatchJob(Message):
    """Scheduler to worker: run this job under a lease of the scheduler. `id` becomes the id of the task."""

    id: Uuid
    spec: JobSpec


class LeaseOutcome(Message):
    """The outcome of a request about a lease: its id and new timeout. Both are None if the request failed.

    On the wire it is `{TAG: {...}}`, or the text "Failed".
    """

    TAG: ClassVar[str]
    id: Uuid | None = None
    timeout: SystemTime | None = None

    @property
    def failed(self) -> bool:
        """Whether the worker refused."""
        return self.id is None or self.timeout is None

    @model_validator(mode="before")
    @classmethod
    def _untag(cls, value: Any) -> Any:
        if isinstance(value, dict) and not (len(value) == 1 and cls.TAG in value):
            return value  # constructed in Python, by field names
        tag, payload = untag(value)
        if tag == cls.TAG:
            return payload
        if tag == "Failed" and payload is None:
            return {}
        raise ValueError(f"unknown variant {tag!r}, expected {cls.TAG} or Failed")

    @model_serializer(mode="plain")
    def _serialize(self) -> Any:
        if self.id is None or self.timeout is None:
            return "Failed"
        return {self.TAG: {"id": self.id.bytes, "timeout": self.timeout.model_dump()}}


class RenewLeaseOutcome(LeaseOutcome):
    """Worker to scheduler: the lease's new timeout, or a refusal."""

    TAG = "Renewed"


class DispatchJobOutcome(LeaseOutcome):
    """Worker to scheduler: the job is accepted under a lease with this timeout, or a refusal."""

    TAG = "Dispatched"


class JobStatus(Message):
    """The state of a job."""

    type: Literal["Running", "Finished", "Failed", "Unknown"]


class ReportJobStatus(Message):
    """Worker to scheduler: the state of a task."""

    task_id: Uuid
    status: JobStatus


class ReportJobStatusReceived(Message):
    """Scheduler to worker: the status has arrived."""


class RequestData(Message):
    """Worker to scheduler: a request for the next slice of this dataset."""

    dataset: str


class DataAssignment(Message):
    """Scheduler to worker: the index of a slice and the peer that has it, or an error. NotFound sets none of them."""

    data_provider: PeerId | None = None
    index: Unsigned64 | None = None
    error: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _untag(cls, value: Any) -> Any:
        if isinstance(value, dict) and not (len(value) == 1 and next(iter(value)) in ("Success", "Error")):
            return value
        tag, payload = untag(value)
        if tag == "NotFound" and payload is None:
            return {}
        if tag == "Error" and isinstance(payload, str):
            return {"error": payload}
        if tag == "Success" and isinstance(payload, dict) and {"data_provider", "index"} <= payload.keys():
            return payload
        raise ValueError(f"unknown variant {tag!r}, expected Success, NotFound or Error")

    @model_serializer(mode="plain")
    def _serialize(self) -> Any:
        if self.error is not None:
            return {"Error": self.error}
        if self.data_provider is None or self.index is None:
            return "NotFound"
        return {"Success": {"data_provider": peer_id_to_bytes(self.data_provider), "index": self.index}}


API: Final = Protocol(
    "/hypha-api/0.0.1",
    request=Tagged[Message](
        {
            "WorkerOffer": WorkerOffer,
            "RenewLease": RenewLease,
            "JobStatus": ReportJobStatus,
            "DispatchJob": DispatchJob,
            "Data": RequestData,
        }
    ),
    response=Tagged[Message](
        {
            "WorkerOffer": WorkerOfferAccepted,
            "RenewLease": RenewLeaseOutcome,
            "JobStatus": ReportJobStatusReceived,
            "DispatchJob": DispatchJobOutcome,
            "Data": DataAssignment,
        }
    ),
)
