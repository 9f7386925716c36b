"""Exports metrics, traces and logs by the OpenTelemetry SDK, in its threads.

Importing this module imports the SDK, which reads variables at once: `hypha_telemetry.start` imports it when they are
checked.
"""

import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock, Thread
from typing import Any, Final

from opentelemetry._logs import Logger, SeverityNumber
from opentelemetry.metrics import Meter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, ConsoleLogRecordExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from hypha_contracts.logs import record_texts
from hypha_contracts.text import escaped
from hypha_telemetry.instruments import SCOPE
from hypha_telemetry.settings import Otlp, Settings
from hypha_telemetry.span_export import SdkSpanExport
from hypha_telemetry.spans import SpanExport
from hypha_telemetry.variables import SIGNALS, Signal

logger = logging.getLogger(__name__)

_SHUTDOWN_S: Final = 5.0
"""How long a stopping process waits for the collector, for all signals together."""
_PAGE_EVERY_S: Final = 1.0
_FAILURES_EVERY_S: Final = 600.0
_OTLP_EXPORTERS: Final[Mapping[Signal, tuple[str, str]]] = {
    "metrics": ("metric_exporter", "OTLPMetricExporter"),
    "traces": ("trace_exporter", "OTLPSpanExporter"),
    "logs": ("_log_exporter", "OTLPLogExporter"),
}
_CONSOLE_EXPORTERS: Final[Mapping[Signal, Callable[[], Any]]] = {
    "metrics": ConsoleMetricExporter,
    "traces": ConsoleSpanExporter,
    "logs": ConsoleLogRecordExporter,
}
_COMPRESSIONS: Final = {"none": "NoCompression", "gzip": "Gzip", "deflate": "Deflate"}
_PACKAGES: Final = {"http/protobuf": "http", "grpc": "grpc"}
_SEVERITIES: Final = {
    logging.NOTSET: SeverityNumber.TRACE,
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}
_OWN_LOGGERS: Final = ("opentelemetry", "grpc", "urllib3", "requests", __name__)
"""Their records about failed exports are not exported, because those exports would fail too."""


class Exporters:
    """The exporters of a process. What cannot be exported is logged, and never ends the process.

    Attributes:
        page: returns the metrics in Prometheus's text format. None without Prometheus.
    """

    def __init__(self, settings: Settings, defaults: Mapping[str, str], version: str) -> None:
        self.meter: Meter | None = None
        self.spans: SpanExport | None = None
        self.page: Callable[[], bytes] | None = None
        self._settings = settings
        self._version = version
        self._shutdowns: list[Callable[[], Any]] = []
        self._resource = Resource.create({**defaults, **settings.attributes})
        starts: dict[Signal, Callable[[], None]] = {
            "metrics": self._start_metrics,
            "traces": self._start_traces,
            "logs": self._start_logs,
        }
        for signal in SIGNALS:
            if settings.exports(signal):
                try:
                    starts[signal]()
                except Exception:
                    logger.exception("no %s are exported, because starting their export failed", signal)
        self._restore_log = _quieten()

    def shutdown(self) -> None:
        """Send the remaining data. Waits at most 5 s for the collector."""
        end_s = time.monotonic() + _SHUTDOWN_S
        threads = [Thread(target=shutdown, daemon=True) for shutdown in self._shutdowns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self._restore_log()

    def _start_metrics(self) -> None:
        readers: list[MetricReader] = [PeriodicExportingMetricReader(e) for e in self._exporters("metrics")]
        if self._settings.prometheus is not None:
            readers.append(self._open_page())
        provider = MeterProvider(readers, self._resource, shutdown_on_exit=False)
        self._shutdowns.append(lambda: provider.shutdown(_SHUTDOWN_S * 1000))
        self.meter = provider.get_meter(SCOPE, self._version)

    def _start_traces(self) -> None:
        processor = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
        provider = TracerProvider(resource=self._resource, shutdown_on_exit=False, active_span_processor=processor)
        self.spans = SdkSpanExport(provider, processor, SCOPE, self._version)
        for exporter in self._exporters("traces"):
            provider.add_span_processor(BatchSpanProcessor(exporter))
        self._shutdowns.append(provider.shutdown)

    def _start_logs(self) -> None:
        provider = LoggerProvider(self._resource, shutdown_on_exit=False)
        for exporter in self._exporters("logs"):
            provider.add_log_record_processor(BatchLogRecordProcessor(exporter))
        handler = LogExport(provider)
        logging.getLogger().addHandler(handler)

        def shutdown() -> None:
            logging.getLogger().removeHandler(handler)
            provider.shutdown()

        self._shutdowns.append(shutdown)

    def _exporters(self, signal: Signal) -> list[Any]:
        """Return the exporters of a signal, apart from Prometheus."""
        made = []
        if signal in self._settings.console:
            made.append(_CONSOLE_EXPORTERS[signal]())
        if (otlp := self._settings.otlp.get(signal)) is not None:
            try:
                made.append(_otlp_exporter(signal, otlp))
            except ImportError as error:
                logger.warning(
                    '%s are not sent to the collector, because %s. `pip install "hypha-worker[otlp-grpc]"`, or use the '
                    "protocol http/protobuf.",
                    *(signal, error),
                )
        return made

    def _open_page(self) -> MetricReader:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: PLC0415 - seldom used
        from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415

        registry = CollectorRegistry(auto_describe=False)
        self.page = Page(lambda: generate_latest(registry))
        return PrometheusMetricReader(registry=registry, scope_info_enabled=False)


def _otlp_exporter(signal: Signal, otlp: Otlp) -> Any:
    """Return the exporter of a signal to a collector. ImportError if the package for its protocol is not installed."""
    if otlp.protocol == "grpc":
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to standard error, past the log
    package = f"opentelemetry.exporter.otlp.proto.{_PACKAGES[otlp.protocol]}"
    module, name = _OTLP_EXPORTERS[signal]
    exporter = getattr(importlib.import_module(f"{package}.{module}"), name)
    compressions = importlib.import_module("grpc" if otlp.protocol == "grpc" else package).Compression
    return exporter(
        endpoint=otlp.endpoint,
        headers={header: value.get_secret_value() for header, value in otlp.headers.items()},
        compression=getattr(compressions, _COMPRESSIONS[otlp.compression]),
        timeout=otlp.timeout_s,
    )


def _quieten() -> Callable[[], None]:
    """Let the SDK report failures seldom, and return the function that ends this.

    Otherwise a collector that is away causes a line in each second.
    """
    seldom = Seldom()
    names = [name for name in logging.root.manager.loggerDict if name.startswith("opentelemetry.")]
    loggers = [logging.getLogger(name) for name in names]
    for sdk_logger in loggers:
        sdk_logger.addFilter(seldom)

    def undo() -> None:
        for sdk_logger in loggers:
            sdk_logger.removeFilter(seldom)

    return undo


class Page:
    """A page that is made again at most once a second, because anybody may ask for it at any rate."""

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._lock = Lock()
        self._made_s = float("-inf")
        self._content = b""

    def __call__(self) -> bytes:
        """Return the page. Threads may call this."""
        with self._lock:
            if time.monotonic() - self._made_s >= _PAGE_EVERY_S:
                self._content = self._make()
                self._made_s = time.monotonic()
            return self._content


class Seldom(logging.Filter):
    """Passes one record of each logger in ten minutes."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record passes."""
        now_s = time.monotonic()
        if now_s - self._passed_s.get(record.name, float("-inf")) < _FAILURES_EVERY_S:
            return False
        self._passed_s[record.name] = now_s
        return True


class LogExport(logging.Handler):
    """Exports the records of all loggers. Texts of others are escaped, as in the log itself."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider
        self._loggers: dict[str, Logger] = {}
        self.addFilter(lambda record: not record.name.startswith(_OWN_LOGGERS))

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record to the exporter, which sends it later."""
        with suppress(Exception):  # the log must never end what logs
            level = min(record.levelno, logging.CRITICAL) // logging.DEBUG * logging.DEBUG
            self._logger_of(record.name).emit(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                severity_text=_SEVERITIES[level].name,
                severity_number=_SEVERITIES[level],
                body=escaped(record.getMessage()),
                attributes={name: "\n".join(lines) for name, lines in record_texts(record).items()},
            )

    def _logger_of(self, name: str) -> Logger:
        """Return the exporter's logger. There are as many as modules that log."""
        if name not in self._loggers:
            self._loggers[name] = self._provider.get_logger(name)
        return self._loggers[name]
