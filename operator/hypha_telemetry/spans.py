"""Finished spans with given ids, which an exporter sends. Importing this module does not import the SDK."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class FinishedSpan:
    """A span of a sampled trace. Times are nanoseconds since the epoch.

    Attributes:
        parent_id: None for the root.
        error: what failed, or None if the span succeeded.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    attributes: Mapping[str, str | bool | int | float] = field(default_factory=dict)
    error: str | None = None


class SpanExport(Protocol):
    """Exports spans."""

    def is_sampled(self, trace_id: str) -> bool:
        """Whether the spans of a new trace are to be exported."""

    def export(self, span: FinishedSpan) -> None:
        """Queue a span. If the collector is too slow, spans are lost."""
