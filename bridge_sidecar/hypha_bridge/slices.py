"""Slices of datasets: the bridge pulls complete slices only, and the next ones before the executor asks for them."""

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypha_bridge.connector import Connector
from hypha_bridge.errors import BridgeError, ConnectorError, source_failed
from hypha_bridge.storage import JobFiles, check_complete
from hypha_executor.errors import MalformedFileError, TruncatedFileError
from hypha_messages.job import DataSlice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PulledSlice:
    """A complete slice in the bridge's own directory."""

    index: int
    path: Path
    size_bytes: int
    checksum: str


def pull(connector: Connector, files: JobFiles, providers: Sequence[str], slice_: DataSlice) -> PulledSlice:
    """Pull a complete slice from the first provider that has it, and retry after breaks (blocks); BridgeError."""

    def attempt_any() -> PulledSlice:
        for provider in providers[:-1]:
            try:
                return attempt(provider)
            except BridgeError as error:
                logger.warning("trying the next peer: %s", error)
        return attempt(providers[-1])

    def attempt(provider: str) -> PulledSlice:
        with files.stage() as staged:
            connector.pull(provider, slice_.dataset, slice_.index, staged)
            try:
                check_complete(staged.path)
            except MalformedFileError as error:
                detail = f"slice {slice_.index} of {slice_.dataset!r} from {provider} {error}"
                if isinstance(error, TruncatedFileError):
                    raise ConnectorError(502, "source_failed", detail, retryable=True) from error
                raise source_failed(detail) from error
            return PulledSlice(slice_.index, staged.path, staged.size_bytes, staged.checksum)

    return connector.retrying(attempt_any)


class ReadAhead:
    """The slices of one dataset in the scheduler's order, of which up to `depth` are pulled ahead."""

    def __init__(
        self, pull_next: Callable[[], Awaitable[PulledSlice]], depth: int, on_change: Callable[[], None]
    ) -> None:
        self._pull_next = pull_next
        self._on_change = on_change
        self._depth = depth
        self._ahead: deque[asyncio.Task[PulledSlice]] = deque()
        self._one_at_a_time = asyncio.Lock()

    @property
    def depth(self) -> int:
        """How many slices are complete before the executor has asked for them."""
        return sum(task.done() for task in self._ahead)

    async def next(self) -> PulledSlice:
        """Return the next slice and begin to pull the following ones; BridgeError."""
        slice_ = await self._take_ahead() or await self._pull()
        while len(self._ahead) < self._depth:
            task = asyncio.create_task(self._pull())
            task.add_done_callback(self._on_pulled)
            self._ahead.append(task)
        self._on_change()
        return slice_

    def _on_pulled(self, done: asyncio.Task[PulledSlice]) -> None:
        if not done.cancelled():
            done.exception()  # asyncio logs unretrieved errors
        self._on_change()

    async def _take_ahead(self) -> PulledSlice | None:
        if not self._ahead:
            return None
        try:
            return await self._ahead.popleft()
        except BridgeError as error:  # slices, storage or peers may be available now
            logger.info("reading ahead failed: %s", error)
            return None

    async def _pull(self) -> PulledSlice:
        async with self._one_at_a_time:
            return await self._pull_next()

    def close(self) -> None:
        """Abandon the slices pulled ahead."""
        for task in self._ahead:
            task.cancel()


def file_name(index: int, dataset: str, first_dataset: str) -> str:
    """Name a slice's file by its index, as executors expect. Slices of a further dataset get a suffix."""
    if dataset == first_dataset:
        return str(index)
    return f"{index}-{hashlib.sha256(dataset.encode()).hexdigest()[:12]}"
