"""Starts and ends the exporters of a process."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry.metrics import Meter

from hypha_telemetry.settings import Settings
from hypha_telemetry.spans import SpanExport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exports:
    """Where a process records what is exported. What is None is not exported.

    Attributes:
        page: returns the metrics in Prometheus's text format, in any thread.
    """

    meter: Meter | None = None
    spans: SpanExport | None = None
    page: Callable[[], bytes] | None = None


@contextmanager
def exporting(settings: Settings, defaults: Mapping[str, str], version: str) -> Iterator[Exports]:
    """Export while the block runs. At the end, send the remaining data, which takes at most 5 s.

    Args:
        settings: what to export, and where to.
        defaults: attributes of everything that is exported, unless the settings have them.
        version: of this process's code.
    """
    for warning in settings.warnings:
        logger.warning("%s", warning)
    if not settings.enabled:
        yield Exports()
        return
    with settings.applied():
        from hypha_telemetry.export import Exporters  # noqa: PLC0415 - the SDK is slow, and reads variables here

        exporters = Exporters(settings, defaults, version)
    try:
        yield Exports(exporters.meter, exporters.spans, exporters.page)
    finally:
        exporters.shutdown()
