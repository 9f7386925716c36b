"""Exports spans with given ids through the span processors of the OpenTelemetry SDK."""

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from hypha_telemetry.spans import FinishedSpan


class SdkSpanExport:
    """A `SpanExport`.

    Args:
        provider: its sampler and its resource are used.
        processor: passes spans on to the exporters.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor, scope: str, version: str) -> None:
        self._sampler = provider.sampler
        self._resource = provider.resource
        self._processor = processor
        self._scope = InstrumentationScope(scope, version)

    def is_sampled(self, trace_id: str) -> bool:
        """Whether the sampler keeps a new trace."""
        return self._sampler.should_sample(None, int(trace_id, 16), "job").decision is not Decision.DROP

    def export(self, span: FinishedSpan) -> None:
        """Queue a span. If the collector is too slow, spans are lost."""
        self._processor.on_end(
            ReadableSpan(
                span.name,
                _context(span.trace_id, span.span_id),
                _context(span.trace_id, span.parent_id) if span.parent_id else None,
                self._resource,
                dict(span.attributes),
                kind=SpanKind.INTERNAL,
                status=Status() if span.error is None else Status(StatusCode.ERROR, span.error),
                start_time=span.start_ns,
                end_time=span.end_ns,
                instrumentation_scope=self._scope,
            )
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
