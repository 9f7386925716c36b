"""Receiving: complete pushes wait on disk until the executor listens. A new listener gets those that it has missed."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio.to_thread
from anyio import CapacityLimiter
from pydantic import BaseModel, Field

from hypha_bridge import paths
from hypha_bridge.connector import BACKOFF, Connector
from hypha_bridge.errors import BridgeError, ConnectorError, forbidden, invalid_request
from hypha_bridge.push_budget import PushBudget
from hypha_bridge.storage import JobFiles, StagedFile, check_complete
from hypha_contracts.bridge_config import BridgeConfig
from hypha_contracts.limits import MAX_TAKEN_PER_PEER
from hypha_executor.errors import MalformedFileError, TruncatedFileError
from hypha_executor.telemetry import Telemetry
from hypha_messages.job import JobSpec, PeersReference, Reference

logger = logging.getLogger(__name__)

_REMEMBERED: Final = 1024
_KEEP_ALIVE_S: Final = 5.0
_CHECK_S: Final = 1.0

Emit = Callable[[bytes], Awaitable[None]]
"""Writes to an event stream (SSE); raises if the client has gone."""


class Pointer(BaseModel):
    """A push that has arrived completely."""

    path: str = Field(description="relative to the work directory")
    size: int = Field(description="bytes")
    from_peer: str
    sequence: int = Field(description="counts the pushes that this job received")
    checksum: str = Field(description="sha256:<hex>")


@dataclass(eq=False)
class _Waiting:
    """A push that the executor has not taken. Its path is empty until the file is in the work directory."""

    staged: Path
    pointer: Pointer


class _Arriving:
    """A push on its way into a staged file."""

    staged: StagedFile

    def __init__(self, peer: str, budget: PushBudget) -> None:
        self.peer = peer
        self.counted_bytes = 0
        self.began_ns = time.time_ns()
        self._budget = budget

    def write(self, data: memoryview) -> None:
        """Append data; BridgeError (507) if it exceeds the peer's share or the job's storage."""
        self._budget.grow(self.peer, len(data))
        self.counted_bytes += len(data)
        self.staged.write(data)


class Inbox:
    """Takes pushes from the node and hands them to listeners."""

    def __init__(
        self, config: BridgeConfig, job: JobSpec, files: JobFiles, connector: Connector, telemetry: Telemetry
    ) -> None:
        self._telemetry = telemetry
        self._senders = job.senders
        self._files = files
        self._connector = connector
        # One call more than all senders can occupy, so that no sender waits for another.
        self._pollers = min(config.push_pollers, MAX_TAKEN_PER_PEER * len(self._senders) + 1)
        max_bytes = math.inf if config.storage_bytes is None else config.storage_bytes / 2
        self._budget = PushBudget(max_bytes, config.waiting_pushes, max(1, len(self._senders)))
        self._threads = CapacityLimiter(self._pollers)
        self._waiting: deque[_Waiting] = deque()
        self._calls = 0  # calls to the node that receive or await a push
        self._delivered: deque[Pointer] = deque(maxlen=_REMEMBERED)
        self._sequence = 0
        self._changed = asyncio.Condition()
        self._pauses = BACKOFF.pauses()
        self.closing = False

    async def close(self) -> None:
        """End the event streams."""
        self.closing = True
        async with self._changed:
            self._changed.notify_all()

    async def poll(self) -> None:
        """Take pushes until cancelled, several at a time. At the limit, the node and its peers wait.

        Only one call waits for the next push while others receive theirs, so idle jobs cost the node little.
        """
        if not self._senders:
            return
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._await_capacity()
                self._calls += 1
                begun = asyncio.Event()
                tasks.create_task(self._receive(begun))
                await begun.wait()

    async def _receive(self, begun: asyncio.Event) -> None:
        """Take one push, if one comes. Set `begun` when it starts to arrive or when the call ends without one."""
        loop, waiting = asyncio.get_running_loop(), None
        try:
            waiting = await anyio.to_thread.run_sync(
                lambda: self._take(lambda: loop.call_soon_threadsafe(begun.set)),
                limiter=self._threads,
                abandon_on_cancel=True,
            )
        except Exception as error:  # after any error, continue with the next push
            # A node that does not answer is usual, a full disk is not.
            usual = isinstance(error, ConnectorError) and error.retryable
            expected = isinstance(error, BridgeError | OSError)
            level = logging.INFO if usual else logging.WARNING if expected else logging.ERROR
            logger.log(level, "receiving a push failed: %s", error, exc_info=not expected)
            if not begun.is_set():  # otherwise it was the push, so that the next one need not wait
                await asyncio.sleep(next(self._pauses))
        else:
            self._pauses = BACKOFF.pauses()
        self._calls -= 1
        async with self._changed:
            if waiting is not None:
                waiting.pointer.sequence = self._sequence
                self._waiting.append(waiting)
                self._sequence += 1
            self._changed.notify_all()
        begun.set()

    async def _await_capacity(self) -> None:
        """Return once another push may arrive. The executor frees space without a notification."""
        while self._calls >= self._pollers or self._budget.exhausted:
            async with self._changed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CHECK_S):
                        await self._changed.wait()

    def _take(self, begin: Callable[[], object]) -> _Waiting | None:
        """Take one push into a staged file (blocks). Return None if none came; BridgeError if it is refused."""
        with contextlib.ExitStack() as stack:
            opened: list[_Arriving] = []

            def open_sink(peer: str) -> _Arriving:
                begin()
                if peer not in self._senders:
                    raise forbidden(f"the job's specification does not name {peer}, which pushed a file")
                opened.append(stack.enter_context(self._arriving(peer)))
                return opened[0]

            self._connector.take_push(open_sink)
            if not opened:
                return None
            [arriving] = opened
            staged, peer = arriving.staged, arriving.peer
            if problem := _problem(staged.path):
                raise invalid_request(f"dropped a push of {staged.size_bytes} bytes from {peer}: {problem}")
        logger.info("received %d bytes from %s", staged.size_bytes, peer)
        self._telemetry.record("push received", arriving.began_ns, {"peer": peer, "bytes": staged.size_bytes})
        received = {"source": "peer", "network.io.direction": "receive"}
        self._telemetry.add("hypha.job.transfer", staged.size_bytes, received)
        pointer = Pointer(path="", size=staged.size_bytes, from_peer=peer, sequence=-1, checksum=staged.checksum)
        return _Waiting(staged.path, pointer)

    @contextlib.contextmanager
    def _arriving(self, peer: str) -> Iterator[_Arriving]:
        """Stage a push. An error removes its file, and the budget stops counting it."""
        self._budget.begin(peer)
        arriving = _Arriving(peer, self._budget)
        try:
            with self._files.stage() as arriving.staged:
                yield arriving
        except BaseException:
            self._budget.end(peer, arriving.counted_bytes)
            raise

    def listen(
        self, reference: Reference, out_dir: str, last_received: int | None
    ) -> Callable[[Emit], Awaitable[None]]:
        """Return the event stream for a client that has the pushes of these peers up to a sequence number; BridgeError.

        The stream emits the pushes that the client has missed, then each new one, until the bridge closes.
        """
        if not isinstance(reference, PeersReference):
            raise invalid_request(f"files are received from peers, not from {reference.type!r}")
        wanted = frozenset(reference.peers) or self._senders
        if unknown := wanted - self._senders:
            raise forbidden(f"the job's specification does not receive from {min(unknown)}")
        directory = paths.parse(out_dir)
        self._files.work_dir.make_directory(directory)
        after = math.inf if last_received is None else last_received

        async def write_events(emit: Emit) -> None:
            for pointer in list(self._delivered):
                if pointer.sequence > after and pointer.from_peer in wanted:
                    await emit(_event(pointer))
            while not self.closing:
                async with self._next(wanted, directory) as pushed:
                    await emit(b": keepalive\n\n" if pushed is None else _event(pushed))

        return write_events

    @contextlib.asynccontextmanager
    async def _next(self, wanted: frozenset[str], directory: tuple[str, ...]) -> AsyncIterator[Pointer | None]:
        """Hand out the next push and take it back if the context fails. None after some seconds or when closing."""
        waiting = await self._wait(wanted)
        if waiting is None:
            yield None
            return
        pointer = waiting.pointer
        try:
            if not pointer.path:
                target = (*directory, f"{pointer.from_peer}.{pointer.sequence}")
                self._files.work_dir.place(waiting.staged, target)
                pointer.path = "/".join(target)
            yield pointer
        except BaseException:
            self._waiting.appendleft(waiting)
            raise
        self._delivered.append(pointer)
        self._budget.deliver(pointer.from_peer, pointer.size, self._files.work_dir.path / pointer.path)
        async with self._changed:
            self._changed.notify_all()

    async def _wait(self, wanted: frozenset[str]) -> _Waiting | None:
        def ready() -> _Waiting | bool:
            return next((waiting for waiting in self._waiting if waiting.pointer.from_peer in wanted), self.closing)

        async with self._changed:
            try:
                async with asyncio.timeout(_KEEP_ALIVE_S):
                    found = await self._changed.wait_for(ready)
            except TimeoutError:
                return None
            if not isinstance(found, _Waiting):
                return None
            self._waiting.remove(found)
            return found


def _event(pointer: Pointer) -> bytes:
    return f"id: {pointer.sequence}\ndata: {pointer.model_dump_json()}\n\n".encode()


def _problem(path: Path) -> str | None:
    try:
        check_complete(path)
    except TruncatedFileError as error:
        return f"it {error}"
    except MalformedFileError:
        pass  # executors may exchange other files and judge them themselves
    return None
