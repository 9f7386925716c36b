"""The node's own spans of each job, from the arrival of its request to the report of its end.

The root `job` has the children `advertisement`, `evaluation`, `offer`, `lease` and `end`. The dispatch is a child of
the lease, and everything that it causes in runtime, bridge and executor is a descendant of `dispatch`.
The ids of these spans follow from the trace's id and their names, so a restarted node continues the trace.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from hypha_contracts.text import escaped
from hypha_contracts.trace_context import TraceContext, TraceId, new_span_id, new_trace_id
from hypha_messages.types import Message
from hypha_telemetry.spans import FinishedSpan, SpanExport

ROOT: Final = "job"
LEASE: Final = "lease"
DISPATCH: Final = "dispatch"
END: Final = "end"

_MAX_ERROR_CHARS: Final = 200

Attributes = Mapping[str, str | bool | int | float]


class Trace(Message):
    """The trace of a lease and its job. Times are seconds since the epoch.

    Attributes:
        arrived: when the request arrived.
        offered: when the lease began.
    """

    id: TraceId
    sampled: bool
    arrived: float
    offered: float

    def context(self, name: str) -> TraceContext:
        """Return the context of one of the node's own spans."""
        return TraceContext(self.id, sha256(f"{self.id} {name}".encode()).hexdigest()[:16], self.sampled)


@contextmanager
def logged_in(context: TraceContext | None) -> Iterator[None]:
    """Let the records of the log within the block name this span."""
    if context is None:
        yield
        return
    flags = TraceFlags(TraceFlags.SAMPLED if context.sampled else TraceFlags.DEFAULT)
    ids = SpanContext(int(context.trace_id, 16), int(context.span_id, 16), is_remote=False, trace_flags=flags)
    with use_span(NonRecordingSpan(ids), record_exception=False, set_status_on_exception=False):
        yield


class JobTraces:
    """Records the spans of all jobs. Those of an offer are exported once its scheduler accepts it.

    Args:
        export: None if no traces are exported.
        enabled: whether anything is exported, metrics included.
        clock: returns seconds since the epoch.
    """

    def __init__(
        self, export: SpanExport | None = None, *, enabled: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._export = export
        self._enabled = enabled or export is not None
        self._held: dict[str, list[FinishedSpan]] = {}
        self.now = clock

    def begin(self, arrived: float) -> Trace | None:
        """Return a new trace for a request that arrived at this time, or None if nothing is exported."""
        if not self._enabled:
            return None
        trace_id = new_trace_id()
        sampled = self._export is not None and self._export.is_sampled(trace_id)
        return Trace(id=trace_id, sampled=sampled, arrived=arrived, offered=self.now())

    def hold(self, trace: Trace | None) -> None:
        """Keep the spans of an offer until `accept` or `discard`, because most offers of a busy market lapse."""
        if trace is not None and trace.sampled:
            self._held[trace.id] = []

    def accept(self, trace: Trace | None) -> None:
        """Export the spans of an accepted offer. No-op if they are exported already."""
        if trace is not None and self._export is not None:
            for span in self._held.pop(trace.id, ()):
                self._export.export(span)

    def discard(self, trace: Trace | None) -> None:
        """Drop the spans of an offer that nobody accepted."""
        if trace is not None:
            self._held.pop(trace.id, None)

    def record(
        self,
        trace: Trace | None,
        name: str,
        start: float,
        *,
        end: float | None = None,
        parent: str = ROOT,
        error: str | None = None,
        attributes: Attributes = MappingProxyType({}),
    ) -> None:
        """Record a span of the node that ended at `end`, by default now. Times are seconds since the epoch."""
        if trace is None or not trace.sampled:
            return
        span = FinishedSpan(
            name,
            trace.id,
            trace.context(name).span_id,
            None if name == ROOT else trace.context(parent).span_id,
            *_nanoseconds(start, self.now() if end is None else end),
            attributes,
            _shown(error),
        )
        if trace.id in self._held:
            self._held[trace.id].append(span)
        else:
            self.export(span)

    def record_below(
        self, parent: TraceContext, name: str, start: float, *, error: str | None, attributes: Attributes
    ) -> None:
        """Record a span with a new id that ends now, as a child of a span of the job."""
        times = _nanoseconds(start, self.now())
        self.export(
            FinishedSpan(name, parent.trace_id, new_span_id(), parent.span_id, *times, attributes, _shown(error))
        )

    def export(self, span: FinishedSpan) -> None:
        """Export a span of a sampled trace."""
        if self._export is not None:
            self._export.export(span)


def _shown(error: str | None) -> str | None:
    return None if error is None else escaped(error, _MAX_ERROR_CHARS)


def _nanoseconds(start: float, end: float) -> tuple[int, int]:
    return int(start * 1e9), int(max(start, end) * 1e9)
