"""Sending: the bridge copies the file, lets the executor continue, and sends the copy to the peers in the background.

Files for one peer arrive in the order in which the executor sent them. One peer does not wait for another.
"""

import asyncio
import logging
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CapacityLimiter

from hypha_bridge import paths
from hypha_bridge.connector import BACKOFF, Connector
from hypha_bridge.errors import BridgeError, ConnectorError, forbidden, invalid_request
from hypha_bridge.storage import JobFiles, snapshot
from hypha_contracts.bridge_config import BridgeConfig
from hypha_executor.telemetry import Telemetry
from hypha_messages.job import JobSpec, PeersReference, Reference

logger = logging.getLogger(__name__)

_CONCURRENT_PUSHES: Final = 16


@dataclass(eq=False)
class _File:
    """A file that is being sent.

    Attributes:
        path: the executor's path of the file.
        copy: the bridge's copy, which is sent.
        arrived: whether a peer has received it.
    """

    path: str
    copy: Path
    arrived: bool = False


class Outbox:
    """Sends files to peers of the job."""

    def __init__(
        self, config: BridgeConfig, job: JobSpec, files: JobFiles, connector: Connector, telemetry: Telemetry
    ) -> None:
        self._telemetry = telemetry
        self._receivers = job.receivers
        self._max_pending = config.pending_sends
        self._deadline_s = max(config.send_deadline_s, config.connector.deadline_s)  # the peer is behind the node
        self._drain_s = config.drain_s
        self._files = files
        self._connector = connector
        self._pending: dict[asyncio.Task[bool], _File] = {}
        self._turns: WeakValueDictionary[frozenset[str], asyncio.Lock] = WeakValueDictionary()
        self._threads = CapacityLimiter(_CONCURRENT_PUSHES)

    async def send(self, reference: Reference, path: str, *, wait: bool = False) -> None:
        """Copy a file and begin to send the copy; BridgeError.

        With `wait`, return once the peers have received it: all of them if the strategy is All, else one.
        """
        if not isinstance(reference, PeersReference):
            raise invalid_request(f"files are sent to peers, not to {reference.type!r}")
        peers = list(dict.fromkeys(reference.peers))
        if not peers:
            raise invalid_request("name at least one peer to send to")
        if unknown := [peer for peer in peers if peer not in self._receivers]:
            raise forbidden(f"the job's specification does not send to {unknown[0]}")
        if len(self._pending) >= self._max_pending:
            detail = f"{self._max_pending} files wait to be sent. Send again once peers have received some."
            raise BridgeError(503, "unavailable", detail)
        file = _File(path, await anyio.to_thread.run_sync(self._snapshot, paths.parse_file(path)))
        task = asyncio.create_task(self._deliver(file, peers, reference.strategy.type))
        self._pending[task] = file
        task.add_done_callback(self._pending.pop)
        if wait and not await asyncio.shield(task):
            raise BridgeError(502, "peer_failed", f"a peer did not receive {path}; the bridge's log says why")

    async def drain(self) -> int:
        """Wait until everything is sent or the configured time has passed. Abandon and log the rest.

        Returns:
            How many of the last files no peer received. A file that reached one of several peers does not count.
        """
        last = list(self._pending.values())
        if self._pending:
            _, late = await asyncio.wait(self._pending, timeout=self._drain_s)
            for task in late:
                task.cancel()
            if late:
                logger.error("stopping with %d files not sent after %g s", len(late), self._drain_s)
        return sum(not file.arrived for file in last)

    def _snapshot(self, names: tuple[str, ...]) -> Path:
        fd = self._files.work_dir.open_file(names)
        try:
            return snapshot(fd, self._files)
        finally:
            os.close(fd)

    async def _deliver(self, file: _File, peers: list[str], strategy: str) -> bool:
        """Push a file to all of these peers or to one of them. Return whether they received it."""
        try:
            if strategy == "All":
                return all(await asyncio.gather(*(self._push_to_any([peer], file) for peer in peers)))
            if strategy == "Random":
                random.shuffle(peers)
            return await self._push_to_any(peers, file)
        finally:
            file.copy.unlink(missing_ok=True)

    async def _push_to_any(self, peers: list[str], file: _File) -> bool:
        """Push to the first of these peers that accepts the file. Try them in turn until the deadline; False then."""
        async with self._turns.setdefault(frozenset(peers), asyncio.Lock()):
            pauses = BACKOFF.pauses(self._deadline_s)
            candidates = peers
            while candidates:
                refused = set()
                for peer in candidates:
                    try:
                        await anyio.to_thread.run_sync(
                            self._push, peer, file.copy, limiter=self._threads, abandon_on_cancel=True
                        )
                    except ConnectorError as error:
                        logger.warning("sending %s to %s failed: %s", file.path, peer, error)
                        if not error.retryable:
                            refused.add(peer)
                    else:
                        logger.info("sent %s to %s", file.path, peer)
                        file.arrived = True
                        return True
                candidates = [peer for peer in candidates if peer not in refused]
                pause_s = next(pauses, None)
                if pause_s is None:
                    break
                await asyncio.sleep(pause_s)
            logger.error("abandoned sending %s to %s", file.path, ", ".join(peers))
            return False

    def _push(self, peer: str, copy: Path) -> None:
        size_bytes = copy.stat().st_size
        with self._telemetry.span("push", {"peer": peer, "bytes": size_bytes}), copy.open("rb") as file:
            self._connector.push(peer, file)
        self._telemetry.add("hypha.job.transfer", size_bytes, {"source": "peer", "network.io.direction": "transmit"})
