"""Fetching: every file that a reference names arrives complete in the work directory."""

import hashlib
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from pydantic import BaseModel, Field

from hypha_bridge import downloads, paths, slices
from hypha_bridge.connector import Connector
from hypha_bridge.downloads import Downloads
from hypha_bridge.errors import invalid_request
from hypha_bridge.hub import Hub
from hypha_bridge.slices import PulledSlice, ReadAhead
from hypha_bridge.storage import JobFiles
from hypha_bridge.trust import write_authorities
from hypha_contracts.bridge_config import BridgeConfig
from hypha_executor.telemetry import Attributes, Telemetry
from hypha_messages.job import (
    DataSlice,
    HuggingFaceReference,
    PeersReference,
    Reference,
    SchedulerReference,
    UriReference,
)

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_CONCURRENT_FETCHES: Final = 8
_MAX_FILES: Final = 4096
_MAX_DATASETS: Final = 64


class FileMetadata(BaseModel):
    """Where a file came from, and when it was complete."""

    source: str
    timestamp: datetime


class FetchedFile(BaseModel):
    """A complete file in the work directory."""

    path: str = Field(description="relative to the work directory")
    size: int = Field(description="bytes")
    checksum: str = Field(description="sha256:<hex>")
    metadata: FileMetadata


class Fetcher:
    """Fetches references into the work directory."""

    def __init__(self, config: BridgeConfig, files: JobFiles, connector: Connector, telemetry: Telemetry) -> None:
        self._read_ahead = config.read_ahead
        self._telemetry = telemetry
        self._files = files
        self._connector = connector
        authorities = write_authorities(config.trust_pem, files.staging)
        self._downloads = Downloads(config, files.storage, authorities)
        self._hub = Hub(config, files, authorities)
        self._queues: dict[tuple[str, str], ReadAhead] = {}
        self._first_dataset: str | None = None
        self._threads = CapacityLimiter(_CONCURRENT_FETCHES)

    def close(self) -> None:
        """Abandon the fetches in progress."""
        self._downloads.close()
        self._hub.close()
        for queue in self._queues.values():
            queue.close()

    async def fetch(self, reference: Reference, out_dir: str) -> list[FetchedFile]:
        """Fetch every file that a reference names; after a BridgeError some of its files may exist."""
        directory = paths.parse(out_dir)
        match reference:
            case HuggingFaceReference():
                return await self._from_hub(reference, directory)
            case UriReference():
                name = paths.parse_file(downloads.file_name(reference.value))
                return [await self._in_thread(lambda: self._from_uri(reference, (*directory, *name)))]
            case SchedulerReference():
                pulled = await self._queue(reference).next()
                return [self._place_slice(pulled, reference.dataset, directory, reference.type)]
            case PeersReference():
                return [await self._from_peer(reference, directory)]

    async def _from_hub(self, reference: HuggingFaceReference, directory: tuple[str, ...]) -> list[FetchedFile]:
        if not reference.repository.strip():
            raise invalid_request("repository must not be empty")
        if not 0 < len(set(reference.filenames)) == len(reference.filenames) <= _MAX_FILES:
            raise invalid_request(f"filenames must name between 1 and {_MAX_FILES} files, each once")
        targets = [(name, (*directory, *paths.parse_file(name))) for name in reference.filenames]

        def download(name: str, target: tuple[str, ...]) -> FetchedFile:
            with self._measured("hub") as measured, self._hub.download(reference, name) as (path, cached):
                measured |= {"bytes": path.stat().st_size, "source": "cache" if cached else "hub"}
                with path.open("rb") as file:
                    checksum = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
                return self._place(path, target, path.stat().st_size, checksum, reference.type)

        # One by one, because a large file fills the line anyway and a refusal of the first file saves the others.
        return [await self._in_thread(partial(download, name, target)) for name, target in targets]

    def _from_uri(self, reference: UriReference, target: tuple[str, ...]) -> FetchedFile:
        with self._measured("http") as size, self._files.stage() as staged:
            self._downloads.download(reference.value, staged)
            size["bytes"] = staged.size_bytes
            return self._place(staged.path, target, staged.size_bytes, staged.checksum, reference.type)

    async def _from_peer(self, reference: PeersReference, directory: tuple[str, ...]) -> FetchedFile:
        wanted = reference.resource
        if wanted is None or not reference.peers:
            raise invalid_request("to fetch from peers, name them in peers and the slice in resource")
        peers = reference.peers
        if reference.strategy.type == "Random":
            peers = random.sample(peers, len(peers))

        def pull() -> PulledSlice:
            with self._measured("peer", "slice") as span:
                return self._pull(peers, wanted.dataset, wanted.index, span)

        pulled = await self._in_thread(pull)
        return self._place_slice(pulled, wanted.dataset, directory, reference.type)

    def _queue(self, reference: SchedulerReference) -> ReadAhead:
        def pull_next() -> PulledSlice:
            with self._measured("peer", "slice") as span:
                asking = partial(self._connector.next_slice, reference.peer, reference.dataset)
                assigned = self._connector.retrying(asking)
                return self._pull([assigned.provider], reference.dataset, assigned.index, span)

        key = (reference.peer, reference.dataset)
        if key not in self._queues:
            if len(self._queues) >= _MAX_DATASETS:
                raise invalid_request(f"a job reads at most {_MAX_DATASETS} datasets")
            self._queues[key] = ReadAhead(lambda: self._in_thread(pull_next), self._read_ahead, self._on_ahead)
        return self._queues[key]

    def _on_ahead(self) -> None:
        depth = sum(queue.depth for queue in self._queues.values())
        self._telemetry.set("hypha.job.slices.ahead", depth)

    @contextmanager
    def _measured(self, source: str, name: str = "fetch") -> Iterator[Attributes]:
        """Record a fetch whose size the block sets. The block may correct the source."""
        with self._telemetry.span(name, {"source": source}) as attributes:
            yield attributes
        received = {"source": str(attributes["source"]), "network.io.direction": "receive"}
        self._telemetry.add("hypha.job.transfer", float(attributes["bytes"]), received)

    def _pull(self, providers: list[str], dataset: str, index: int, span: Attributes) -> PulledSlice:
        pulled = slices.pull(self._connector, self._files, providers, DataSlice(dataset=dataset, index=index))
        span |= {"bytes": pulled.size_bytes, "index": pulled.index}
        return pulled

    def _place_slice(self, pulled: PulledSlice, dataset: str, directory: tuple[str, ...], source: str) -> FetchedFile:
        self._first_dataset = self._first_dataset or dataset
        name = slices.file_name(pulled.index, dataset, self._first_dataset)
        return self._place(pulled.path, (*directory, name), pulled.size_bytes, pulled.checksum, source)

    def _place(self, path: Path, target: tuple[str, ...], size: int, checksum: str, source: str) -> FetchedFile:
        try:
            self._files.work_dir.place(path, target)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        logger.info("fetched %d bytes from %s", size, source)  # the name may be a part of a secret URI
        metadata = FileMetadata(source=source, timestamp=datetime.now(UTC))
        return FetchedFile(path="/".join(target), size=size, checksum=checksum, metadata=metadata)

    async def _in_thread(self, call: Callable[[], _Result]) -> _Result:
        return await anyio.to_thread.run_sync(call, limiter=self._threads, abandon_on_cancel=True)
