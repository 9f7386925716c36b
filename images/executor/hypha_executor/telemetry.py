"""Spans and metrics of a job, which the worker exports. Nothing here raises errors or waits for anybody.

The worker sets the variable `TRACEPARENT` if it exports telemetry. Without it, every method does nothing. If the trace
is not sampled, only metrics are sent. A thread sends what was recorded once a second, and drops what cannot be sent.
"""

import atexit
import contextlib
import os
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from math import isfinite
from typing import Any, Final

HEADER: Final = "traceparent"
"""The header of a call that names the span from which the call is made."""

_VARIABLE: Final = "TRACEPARENT"
_CONTEXT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED: Final = 0x01
_EVERY_S: Final = 1.0
_MAX_SPANS: Final = 1024
_MAX_METRICS: Final = 128
_SPANS_PER_CALL: Final = 32
_CALLS_AT_ONCE: Final = 2

Attributes = dict[str, bool | int | float | str]
Batch = dict[str, Any]
"""A trace id, and lists of spans and metrics, as the bridge and the node accept them."""


class Telemetry:
    """Records the spans and metrics of one process. Thread-safe.

    Args:
        send: sends one batch. It may block and raise.
        environ: the environment of the process.
        measure: called before every sending, to record what has to be read from somewhere.

    Attributes:
        enabled: whether the worker exports telemetry.
        trace_id: empty without telemetry.
    """

    def __init__(
        self,
        send: Callable[[Batch], object],
        environ: Mapping[str, str] = os.environ,
        measure: Callable[["Telemetry"], None] | None = None,
    ) -> None:
        context = _CONTEXT.fullmatch(environ.get(_VARIABLE, ""))
        self.enabled = context is not None
        self.trace_id, self._root, flags = context.groups() if context else ("", "", "00")
        self._sampled = bool(int(flags, 16) & _SAMPLED)
        self._current: ContextVar[str] = ContextVar("span", default=self._root)
        self._send = send
        self._measure = measure
        self._spans: deque[Batch] = deque(maxlen=_MAX_SPANS)
        self._increases: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def traceparent(self) -> str | None:
        """The current span as W3C trace context, or None without telemetry."""
        return f"00-{self.trace_id}-{self._current.get()}-{int(self._sampled):02x}" if self.enabled else None

    @contextlib.contextmanager
    def span(self, name: str, attributes: Attributes | None = None) -> Iterator[Attributes]:
        """Record a span around the block, which may add attributes. An error that leaves the block is recorded."""
        attributes = attributes or {}
        if not self._sampled:
            yield attributes
            return
        parent_id, span_id, start_ns, error = self._current.get(), secrets.token_hex(8), time.time_ns(), None
        token = self._current.set(span_id)
        try:
            yield attributes
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"[:200]
            raise
        finally:
            with contextlib.suppress(ValueError):  # a generator may be closed in another context
                self._current.reset(token)
            self._add_span(name, (span_id, parent_id), start_ns, error, attributes)

    def record(self, name: str, start_ns: int, attributes: Attributes | None = None) -> None:
        """Record a span that ends now. `start_ns` counts nanoseconds since the epoch."""
        if self._sampled:
            self._add_span(name, (secrets.token_hex(8), self._current.get()), start_ns, None, attributes or {})

    @contextlib.contextmanager
    def within(self, traceparent: str | None) -> Iterator[None]:
        """Make the spans of the block children of a span of another process, if that belongs to this trace."""
        context = _CONTEXT.fullmatch(traceparent or "")
        if context is None or context[1] != self.trace_id:
            yield
            return
        token = self._current.set(context[2])
        try:
            yield
        finally:
            self._current.reset(token)

    def add(self, metric: str, increase: float, attributes: Mapping[str, str] | None = None) -> None:
        """Increase a counter."""
        if self.enabled and isfinite(increase):
            key = metric, tuple((attributes or {}).items())
            with self._lock:
                if key in self._increases or len(self._increases) < _MAX_METRICS:
                    self._increases[key] = self._increases.get(key, 0) + increase
            self._start()

    def set(self, metric: str, value: float, attributes: Mapping[str, str] | None = None) -> None:
        """Set the current value of a metric."""
        if self.enabled and isfinite(value):
            key = metric, tuple((attributes or {}).items())
            with self._lock:
                if key in self._values or len(self._values) < _MAX_METRICS:
                    self._values[key] = value
            self._start()

    def pass_on(self, spans: list[Batch]) -> None:
        """Send spans that another process of the job has recorded."""
        if self._sampled:
            self._spans.extend(spans)
            self._start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Send the rest, for no longer than the timeout. Python calls this when the process ends normally."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _add_span(
        self, name: str, ids: tuple[str, str], start_ns: int, error: str | None, attributes: Attributes
    ) -> None:
        span_id, parent_id = ids
        end_ns = max(start_ns, time.time_ns())
        times = {"start_ns": start_ns, "end_ns": end_ns}
        finite = {key: value for key, value in attributes.items() if not isinstance(value, float) or isfinite(value)}
        ends = {"error": error, "attributes": finite}
        self._spans.append({"name": name, "span_id": span_id, "parent_id": parent_id, **times, **ends})
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                atexit.register(self.close)
                self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(_EVERY_S):
            self._flush(_CALLS_AT_ONCE)
        self._flush(_MAX_SPANS // _SPANS_PER_CALL)

    def _flush(self, calls: int) -> None:
        with contextlib.suppress(Exception):  # telemetry must never end the job
            if self._measure is not None:
                self._measure(self)
        metrics = self._take_metrics()
        for _ in range(calls):
            if not (metrics or self._spans):
                return
            spans = [self._spans.popleft() for _ in range(min(_SPANS_PER_CALL, len(self._spans)))]
            with contextlib.suppress(Exception):
                self._send({"trace_id": self.trace_id, "spans": spans, "metrics": metrics})
            metrics = []

    def _take_metrics(self) -> list[Batch]:
        with self._lock:
            increases, values = self._increases, self._values
            self._increases, self._values = {}, {}
        return [
            {"name": name, "value": value, "attributes": dict(attributes), "increase": taken is increases}
            for taken in (increases, values)
            for (name, attributes), value in taken.items()
        ]
