"""Receives predictions: the pushes of an inference job's workers, of which one per slice becomes a file."""

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from hypha_executor.errors import MalformedFileError
from hypha_executor.labels import Labels, parse_labels
from hypha_executor.safetensors import read_header
from hypha_network.wire.streams import Stream
from hypha_worker.connector.pushes import pieces

logger = logging.getLogger(__name__)

_MAX_RECEIVING: Final = 16


class RefusedResultError(Exception):
    """A push is no result of this job. The text says why."""


class Predictions:
    """The directory of a job's predictions: `<slice index>.safetensors`, each complete and written once.

    Args:
        directory: for the files.
        max_bytes: the most that the predictions of one slice may have.
        expects: takes a peer and the labels of its file; returns whether this is the first result of its slice. Raises
            RefusedResultError if it is no result of this job.
        on_result: called with the peer and the labels of each new result.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        expects: Callable[[str, Labels], bool],
        on_result: Callable[[str, Labels], None],
    ) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._expects = expects
        self._on_result = on_result
        self._places = trio.CapacityLimiter(_MAX_RECEIVING)

    async def take(self, peer_id: str, stream: Stream) -> None:
        """Receive a push, and reset it if it is not taken."""
        path = self._directory / f".{secrets.token_hex(8)}.partial"
        try:
            async with self._places:
                await self._receive(peer_id, stream, path)
        except (RefusedResultError, OSError, trio.TooSlowError) as error:
            logger.warning("refused the push of %s: %s", peer_id, str(error) or "it is too slow")
            stream.reset()
        finally:
            path.unlink(missing_ok=True)

    async def _receive(self, peer_id: str, stream: Stream, path: Path) -> None:
        received = 0
        async with await trio.open_file(path, "xb", buffering=0) as file:
            async for piece in pieces(stream):
                received += len(piece)
                if received > self._max_bytes:
                    raise RefusedResultError(f"it has more than {self._max_bytes} bytes; raise results.max_gb")
                await file.write(piece)
            await trio.to_thread.run_sync(os.fsync, file.fileno())
        self._count(peer_id, path, await trio.to_thread.run_sync(_read_labels, path))

    def _count(self, peer_id: str, path: Path, labels: Labels) -> None:
        """Keep the file of a new result, all at once, so that no other result of its slice comes between."""
        if self._expects(peer_id, labels):
            path.rename(self._directory / f"{labels.slice_index}.safetensors")
            self._on_result(peer_id, labels)


def _read_labels(path: Path) -> Labels:
    try:
        return parse_labels(read_header(path).metadata)
    except MalformedFileError as error:
        raise RefusedResultError(str(error)) from None
