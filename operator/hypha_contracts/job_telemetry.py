"""What a job reports about itself: finished spans and metrics. It goes from executor to bridge and from bridge to node.

The job is hostile. Bridge and node check each record and drop those that break a rule.
"""

from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, Field, ValidationError, model_validator

from hypha_contracts.text import escaped
from hypha_contracts.trace_context import SpanId, TraceId
from hypha_messages.types import Message

MAX_SPANS: Final = 64
MAX_METRICS: Final = 256
"""Maximum number of records in one call."""
_MAX_ATTRIBUTES: Final = 16
_MAX_TEXT_CHARS: Final = 200
_NAME: Final = r"^[a-z][a-z0-9_.]{0,62}$"
_MAX_NANOSECONDS: Final = 2**63

_Nanoseconds = Annotated[int, Field(strict=True, gt=0, lt=_MAX_NANOSECONDS)]
_Text = Annotated[str, Field(strict=True, max_length=_MAX_TEXT_CHARS), AfterValidator(escaped)]
_Whole = Annotated[int, Field(strict=True, ge=-(2**53), le=2**53)]
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Attributes = Annotated[
    dict[Annotated[str, Field(pattern=_NAME)], bool | _Whole | _Number | _Text], Field(max_length=_MAX_ATTRIBUTES)
]
_Record = TypeVar("_Record", bound=Message)


class SpanRecord(Message):
    """A finished span. Times are nanoseconds since the epoch.

    Attributes:
        error: what failed, or None if the span succeeded.
    """

    name: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(escaped)]
    span_id: SpanId
    parent_id: SpanId
    start_ns: _Nanoseconds
    end_ns: _Nanoseconds
    error: _Text | None = None
    attributes: _Attributes = Field(default={})

    @model_validator(mode="after")
    def _is_in_order(self) -> "SpanRecord":
        if self.end_ns < self.start_ns:
            raise ValueError("a span must not end before it starts")
        return self


class MetricRecord(Message):
    """An `increase` of a counter, or the current value of another metric."""

    name: Annotated[str, Field(pattern=_NAME)]
    value: Annotated[float, Field(allow_inf_nan=False, strict=True)]
    increase: Annotated[bool, Field(strict=True)] = False
    attributes: Annotated[dict[str, _Text], Field(max_length=_MAX_ATTRIBUTES)] = Field(default={})


class TelemetryBatch(Message):
    """The body of a call. The records are checked one by one by `valid`."""

    trace_id: TraceId
    spans: Annotated[list[Any], Field(max_length=MAX_SPANS)] = Field(default=[])
    metrics: Annotated[list[Any], Field(max_length=MAX_METRICS)] = Field(default=[])


def valid(model: type[_Record], records: list[Any]) -> list[_Record]:
    """Return the records that keep all rules."""
    found = []
    for record in records:
        try:
            found.append(model.model_validate(record))
        except ValidationError:
            continue
    return found
