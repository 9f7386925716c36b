"""Takes what jobs report about themselves. A job can only change its own trace, and only at a bounded rate."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

from hypha_contracts.connector_api import NEXT_SLICE, PULL_SLICE, PUSH
from hypha_contracts.job_telemetry import MetricRecord, SpanRecord, TelemetryBatch, valid
from hypha_contracts.trace_context import parse_trace_context
from hypha_network.fairness import FairRate
from hypha_telemetry.spans import FinishedSpan
from hypha_worker.job import Job
from hypha_worker.traces.job_metrics import JobMetrics
from hypha_worker.traces.job_traces import JobTraces, logged_in

_BATCHES_PER_S: Final = 5.0
_MAX_BATCHES_AT_ONCE: Final = 50
"""Batches of one job that the node reads at once, and then in each second. A bridge of ours sends two."""
_SPANS_PER_S: Final = 20.0
_MAX_SPANS_AT_ONCE: Final = 400
"""Spans of one job that are exported at once, and then in each second. Further ones are dropped."""
_ALL_SPANS_PER_S: Final = 400.0
"""Spans of all jobs together, of which each job that reports some has an equal share."""
_MAX_SKEW_S: Final = 10.0
"""How far the clock of a job's machine may differ from the node's."""
_REPORTED: Final = {"reported_by": "job"}
"""The attribute by which a reader recognises a span that the node did not measure."""

_CALLS: Final[Mapping[tuple[str, str], str]] = {
    NEXT_SLICE: "ask for slice",
    PULL_SLICE: "pull slice",
    PUSH: "deliver push",
}
"""The calls that get a span of the node, and its name."""


class TelemetryIntake:
    """Checks and exports what jobs report.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, traces: JobTraces, metrics: JobMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._traces = traces
        self._metrics = metrics
        self._batches = FairRate(_BATCHES_PER_S, _MAX_BATCHES_AT_ONCE)
        self._rate = FairRate(_SPANS_PER_S, _MAX_SPANS_AT_ONCE, _ALL_SPANS_PER_S)

    def may_report(self, job: Job) -> bool:
        """Whether the node reads the next batch of this job."""
        return self._batches.take(job.task_id, self._clock())

    def take(self, job: Job, batch: TelemetryBatch) -> None:
        """Export the records of a batch for the job's own trace that keep all rules; drop the others."""
        own = parse_trace_context(job.traceparent)
        if own is None or batch.trace_id != own.trace_id:
            return
        self._metrics.take(job.task_id, valid(MetricRecord, batch.metrics))
        for item in batch.spans if own.sampled else ():
            if not self._may_export(job):
                return
            for record in valid(SpanRecord, [item]):
                if self._is_timely(record, job.began):
                    self._traces.export(finished_span(record, own.trace_id, ids_of(job)))

    def end(self, task_id: UUID) -> None:
        """Stop exporting the metrics of a job that has ended."""
        self._metrics.end(task_id)

    @contextmanager
    def call(self, job: Job, call: tuple[str, str], traceparent: str | None) -> Iterator[None]:
        """Record what the node does for a call of a job, below the span of the job's trace that the call names."""
        own, named = parse_trace_context(job.traceparent), parse_trace_context(traceparent)
        name, began = _CALLS.get(call), self._traces.now()
        error: str | None = None
        try:
            with logged_in(own):
                yield
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            own_parent = own is not None and own.sampled and named is not None and named.trace_id == own.trace_id
            if name and named and own_parent and self._may_export(job):
                self._traces.record_below(named, name, began, error=error, attributes=ids_of(job))

    def _may_export(self, job: Job) -> bool:
        return self._rate.take(job.task_id, self._clock())

    def _is_timely(self, record: SpanRecord, began: float) -> bool:
        first, last = began - _MAX_SKEW_S, self._traces.now() + _MAX_SKEW_S
        return first * 1e9 <= record.start_ns and record.end_ns <= last * 1e9


def ids_of(job: Job) -> dict[str, Any]:
    """Return the attributes that the node adds to every span of a job."""
    return {"task": str(job.task_id), "lease": str(job.lease_id), "job": str(job.spec.job_id)}


def finished_span(record: SpanRecord, trace_id: str, ids: Mapping[str, Any]) -> FinishedSpan:
    """Return the span of a record. The node's attributes replace those of the job with the same names."""
    return FinishedSpan(
        record.name,
        trace_id,
        record.span_id,
        record.parent_id,
        record.start_ns,
        record.end_ns,
        {**record.attributes, **_REPORTED, **ids},
        record.error,
    )
