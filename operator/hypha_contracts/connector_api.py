"""The connector API: what the bridge of a job asks of the node, over HTTP/1.1 with one request per connection.

The bearer token of a request names the job. The node refuses with a status and an `ErrorBody`.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from pydantic import BaseModel

from hypha_messages.job import DataSlice
from hypha_messages.types import Message, PeerId, Unsigned64


class Call(NamedTuple):
    """One call of the API."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


NEXT_SLICE: Final = Call("POST", "/slices/next")
"""`NextSlice`; the node answers with the `AssignedSlice`, or 410 `no_slice` if the scheduler has none for the job."""
PULL_SLICE: Final = Call("POST", "/slices/pull")
"""`PullSlice`; the node streams the slice."""
PUSH: Final = Call("POST", "/pushes")
"""The file, for the peer in `RECEIVER_PARAMETER`; the node answers once the peer has received all of it."""
TAKE_PUSH: Final = Call("GET", "/pushes")
"""The node streams the next push, with its sender in `SENDER_HEADER`, or answers 204 after `TAKE_PUSH_S`."""
REPORT_PROGRESS: Final = Call("POST", "/progress")
"""`hypha_messages.progress.Progress`; the node answers with the scheduler's `ProgressResponse`."""
REPORT_TELEMETRY: Final = Call("POST", "/telemetry")
"""`hypha_contracts.job_telemetry.TelemetryBatch`; the node answers 204, whether or not it uses every record."""

RECEIVER_PARAMETER: Final = "peer"
SENDER_HEADER: Final = "Hypha-Peer"

TAKE_PUSH_S: Final = 25.0
"""How long the node waits for a push before it answers that none came."""
ANSWER_TIMEOUT_S: Final = 90.0
"""How long the bridge waits for an answer. The node gives the peers behind a call less time."""
STALL_TIMEOUT_S: Final = 900.0
"""How long either side waits for the next byte of bulk data. A busy receiver may hold up a sender for minutes."""


class NextSlice(Message):
    """Asks the scheduler for the next slice of a dataset."""

    scheduler: PeerId
    dataset: str


class AssignedSlice(Message):
    """The slice that the scheduler assigned, and the peer that provides it."""

    provider: PeerId
    index: Unsigned64


class PullSlice(DataSlice):
    """Asks the provider of a slice for its content."""

    provider: PeerId


class ErrorCode(StrEnum):
    """Why the node refused a call."""

    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    NO_SLICE = "no_slice"
    NO_SUCH_CALL = "no_such_call"
    PEER_FAILED = "peer_failed"
    UNAVAILABLE = "unavailable"
    NOT_READY = "not_ready"


class ErrorBody(BaseModel):
    """What went wrong: a code for programs, a text for people."""

    error: str
    detail: str
