"""The bridge of one job: its parts, and the order in which they start and stop."""

import asyncio
import contextlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio.to_thread
from anyio import CapacityLimiter

from hypha_bridge.config import ConfigError, read
from hypha_bridge.connector import Connector
from hypha_bridge.fetch import Fetcher
from hypha_bridge.inbox import Inbox
from hypha_bridge.metrics import FiniteMetrics
from hypha_bridge.outbox import Outbox
from hypha_bridge.paths import WorkDir
from hypha_bridge.storage import JobFiles, Storage
from hypha_contracts.bridge_config import BridgeConfig
from hypha_contracts.job_telemetry import MetricRecord, SpanRecord, TelemetryBatch, valid
from hypha_executor.telemetry import Telemetry
from hypha_messages.job import JobSpec
from hypha_messages.progress import Progress

_CONCURRENT_REPORTS: Final = 8
_TEMPORARY: Final = "tmp"
_MARKER: Final = ".hypha-bridge"


class Bridge:
    """Fetches, sends, receives and reports for one job while the context is open."""

    def __init__(self, config: BridgeConfig) -> None:
        job = read(JobSpec, config.job_file)
        _make_work_dir(config.work_dir)
        self._staging = _staging(config)
        self._connector = Connector(config.connector, lambda: self.telemetry.traceparent)
        self.telemetry = Telemetry(self._connector.report_telemetry)
        self._metrics = FiniteMetrics(self.telemetry)
        self._work_dir = WorkDir(config.work_dir)
        storage = Storage((config.work_dir, self._staging), config.storage_bytes)
        files = JobFiles(self._work_dir, self._staging, storage)
        self._threads = CapacityLimiter(_CONCURRENT_REPORTS)
        self.fetcher = Fetcher(config, files, self._connector, self.telemetry)
        self.outbox = Outbox(config, job, files, self._connector, self.telemetry)
        self.inbox = Inbox(config, job, files, self._connector, self.telemetry)
        self.undelivered = 0
        """How many of the last files no peer received; set when the context closes."""

    async def report(self, progress: Progress) -> bytes:
        """Report progress to the scheduler and return its answer (JSON); BridgeError."""
        body = self._metrics.keep(progress).model_dump(mode="json")
        return await anyio.to_thread.run_sync(
            lambda: self._connector.retrying(lambda: self._connector.progress(body)),
            limiter=self._threads,
            abandon_on_cancel=True,
        )

    def pass_on(self, batch: TelemetryBatch) -> None:
        """Send the executor's telemetry to the node, apart from that of other traces and records that break a rule."""
        if batch.trace_id != self.telemetry.trace_id:
            return
        self.telemetry.pass_on([span.model_dump() for span in valid(SpanRecord, batch.spans)])
        for metric in valid(MetricRecord, batch.metrics):
            record = self.telemetry.add if metric.increase else self.telemetry.set
            record(metric.name, metric.value, metric.attributes)

    async def __aenter__(self) -> Self:
        self._polling = asyncio.create_task(self.inbox.poll())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._polling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._polling
        self.fetcher.close()
        self.undelivered = await self.outbox.drain()
        await anyio.to_thread.run_sync(self.telemetry.close)
        self._connector.close()
        self._work_dir.close()
        shutil.rmtree(self._staging, ignore_errors=True)


def _make_work_dir(directory: Path) -> None:
    """Create the work directory and its directory for temporary files if a shared volume is still empty."""
    if not directory.exists():
        for made in (directory, directory / _TEMPORARY):
            made.mkdir(mode=0o700)


def _staging(config: BridgeConfig) -> Path:
    """Create the bridge's own directory, empty except for its marker, on the file system of the work directory.

    Raises:
        ConfigError: the directory cannot be used, or holds files that no bridge made.
    """
    directory = config.state_dir
    if directory.exists() and any(directory.iterdir()) and not (directory / _MARKER).exists():
        raise ConfigError(
            f"state_dir {directory} holds files that no bridge made. Name a directory for the bridge alone."
        )
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    (directory / _MARKER).touch()
    if directory.stat().st_dev != config.work_dir.stat().st_dev:
        raise ConfigError(f"state_dir {directory} must be on the same file system as work_dir {config.work_dir}")
    return directory
