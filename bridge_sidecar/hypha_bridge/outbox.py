"""Sending: the file is copied aside, the executor goes on at once, and the peers get it in the background.

What is sent to one peer arrives in the order in which it was sent; one peer does not wait for another.
"""

import asyncio
import logging
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Final

import anyio.to_thread
from anyio import CapacityLimiter

from hypha_bridge import paths
from hypha_bridge.config import BridgeConfig
from hypha_bridge.connector import Attempts, Connector
from hypha_bridge.errors import BridgeError, ConnectorError, forbidden, invalid_request
from hypha_bridge.storage import JobFiles, snapshot
from hypha_messages.job import JobSpec, PeersReference, Reference

logger = logging.getLogger(__name__)

_CONCURRENT_PUSHES: Final = 16


class Outbox:
    """Sends files to peers of the job."""

    def __init__(self, config: BridgeConfig, job: JobSpec, files: JobFiles, connector: Connector) -> None:
        self._receivers = job.receivers
        self._max_pending = config.pending_sends
        self._deadline_s = max(config.send_deadline_s, config.connector.deadline_s)  # the peer is behind the node
        self._drain_s = config.drain_s
        self._files = files
        self._connector = connector
        self._pending: set[asyncio.Task[None]] = set()
        self._turns: dict[frozenset[str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._threads = CapacityLimiter(_CONCURRENT_PUSHES)

    async def send(self, reference: Reference, path: str) -> None:
        """Copy a file aside and begin to send it; BridgeError."""
        if not isinstance(reference, PeersReference):
            raise invalid_request(f"files are sent to peers, not to {reference.type!r}")
        peers = list(dict.fromkeys(reference.peers))
        if not peers:
            raise invalid_request("name at least one peer to send to")
        if strangers := [peer for peer in peers if peer not in self._receivers]:
            raise forbidden(f"the job's specification does not send to {strangers[0]}")
        if len(self._pending) >= self._max_pending:
            detail = f"{self._max_pending} files wait to be sent; send again once peers have taken some"
            raise BridgeError(503, "unavailable", detail)
        copy = await anyio.to_thread.run_sync(self._snapshot, paths.parse_file(path))
        task = asyncio.create_task(self._deliver(copy, path, peers, reference.strategy.type))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def drain(self) -> None:
        """Wait until everything is sent, as long as the configuration allows; what is not is given up, and logged."""
        if self._pending:
            _, late = await asyncio.wait(self._pending, timeout=self._drain_s)
            for task in late:
                task.cancel()
            if late:
                logger.error("stopping with %d files not sent after %g s", len(late), self._drain_s)

    def _snapshot(self, names: tuple[str, ...]) -> Path:
        fd = self._files.work_dir.open_file(names)
        try:
            return snapshot(fd, self._files)
        finally:
            os.close(fd)

    async def _deliver(self, copy: Path, path: str, peers: list[str], strategy: str) -> None:
        try:
            if strategy == "All":
                await asyncio.gather(*(self._push_to_any([peer], copy, path) for peer in peers))
            else:
                if strategy == "Random":
                    random.shuffle(peers)
                await self._push_to_any(peers, copy, path)
        finally:
            copy.unlink(missing_ok=True)  # noqa: ASYNC240 - of a local file: no wait

    async def _push_to_any(self, peers: list[str], copy: Path, path: str) -> None:
        """Push to the first of these peers that takes it, trying them in turn until the deadline."""
        async with self._turns[frozenset(peers)]:
            delays = Attempts(self._deadline_s).delays()
            candidates = peers
            while candidates:
                refused = set()
                for peer in candidates:
                    try:
                        await anyio.to_thread.run_sync(
                            self._push, peer, copy, limiter=self._threads, abandon_on_cancel=True
                        )
                    except ConnectorError as error:
                        logger.warning("sending %s to %s failed: %s", path, peer, error)
                        if not error.retryable:
                            refused.add(peer)
                    else:
                        logger.info("sent %s to %s", path, peer)
                        return
                candidates = [peer for peer in candidates if peer not in refused]
                delay = next(delays, None)
                if delay is None:
                    break
                await asyncio.sleep(delay)
            logger.error("gave up sending %s to %s", path, ", ".join(peers))

    def _push(self, peer: str, copy: Path) -> None:
        with copy.open("rb") as file:
            self._connector.push(peer, file)
