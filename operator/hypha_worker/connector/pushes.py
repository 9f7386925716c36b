"""Routes pushes to jobs.

A push names no job, so the sender and, if necessary, the label in its header identify the job. A push waits until a job
that names its sender takes it. Until then only its header is read, which slows its sender down.
"""

import contextlib
import json
import logging
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import trio

from hypha_network.errors import NetworkError
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.streams import Stream
from hypha_worker.connector.loopback import LoopbackStream

logger = logging.getLogger(__name__)

_HEADER_LENGTH: Final = struct.Struct("<Q")
_MAX_HEADER_BYTES: Final = 2 * 1024 * 1024
_HEADER_TIMEOUT_S: Final = 30.0
_MAX_WAITING: Final = 128
_MAX_WAITING_PER_PEER: Final = 16
_MAX_TAKEN_PER_PEER: Final = 2
"""Pushes of one peer that a job receives at once. Its bridge can take more, so a stalled peer blocks only itself."""
_MAX_WAIT_S: Final = 900.0
_NOT_TAKEN: Final = b"\0"
"""Sent before the reset of a push that no job has received completely. The reference implementation ends a completely
read push with a reset alone."""
_REFUSAL_TIMEOUT_S: Final = 5.0


PushStream = Stream | LoopbackStream
"""The stream of a push."""

Deliver = Callable[[str, PushStream], Awaitable[None]]


class _RefusedPush(Exception):  # noqa: N818 - the peer's doing
    """No job gets this push. The message says why."""


@dataclass(eq=False)
class _Receiver:
    """A job that receives pushes. `waiting_since` is when it began to wait for the next one."""

    label: str
    senders: frozenset[str]
    waiting_since: float | None = None
    taken: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class _Push:
    """A push that waits for one of the jobs it may be for."""

    peer: str
    stream: PushStream
    receivers: list[_Receiver]
    taken_by: _Receiver | None = None
    decided: trio.Event = field(default_factory=trio.Event)  # its delivery has begun, or no job can take it
    done: trio.Event = field(default_factory=trio.Event)
    complete: bool = False


@dataclass(eq=False)
class _Taker:
    """A job's call that waits for a push."""

    receiver: _Receiver
    push: _Push | None = None
    served: trio.Event = field(default_factory=trio.Event)


class PushRouter:
    """Matches pushes with the jobs that wait for them."""

    def __init__(self) -> None:
        self._receivers: dict[UUID, _Receiver] = {}
        self._pushes: list[_Push] = []
        self._takers: list[_Taker] = []
        self._held: Counter[str] = Counter()
        self._refusal_log = RateLimitedLogger(logger)

    def add(self, task_id: UUID, label: str, senders: frozenset[str]) -> None:
        """Let a job receive the pushes of these peers from now on. Peers may name it by `label`."""
        self._receivers[task_id] = _Receiver(label, senders)

    def remove(self, task_id: UUID) -> None:
        """Remove a job that has ended, and refuse the pushes that wait only for it."""
        receiver = self._receivers.pop(task_id, None)
        for push in list(self._pushes):
            push.receivers = [other for other in push.receivers if other is not receiver]
            if not push.receivers:
                self._pushes.remove(push)
                push.decided.set()

    async def handle(self, peer: str, stream: PushStream) -> None:
        """Serve a push of a peer. Return once a job has received all of it, or the peer knows of the refusal."""
        try:
            push = await self._await_job(peer, stream)
            await push.done.wait()
            if push.complete:
                return
        except _RefusedPush as refusal:
            self._refusal_log.warning(peer, "refused a push: %s", refusal)
        with trio.move_on_after(_REFUSAL_TIMEOUT_S), contextlib.suppress(NetworkError):
            await stream.send_all(_NOT_TAKEN)
        stream.reset()

    async def take(self, task_id: UUID, deliver: Deliver, timeout_s: float) -> bool:
        """Wait for the next push for a job and have `deliver(peer, stream)` receive it.

        Returns:
            Whether there was one. The push is reset if `deliver` raises or is cancelled.
        """
        push = await self._await_push(task_id, timeout_s)
        if push is None:
            return False
        push.decided.set()
        try:
            await deliver(push.peer, push.stream)
            push.complete = True
        finally:
            push.done.set()
            self._release(push)
        return True

    async def _await_job(self, peer: str, stream: PushStream) -> _Push:
        """Hold a push until a job takes it."""
        receivers = [receiver for receiver in self._receivers.values() if peer in receiver.senders]
        if not receivers:
            raise _RefusedPush("no job of this worker names it")
        if self._held[peer] >= _MAX_WAITING_PER_PEER or self._held.total() >= _MAX_WAITING:
            raise _RefusedPush("too many pushes are waiting already")
        self._held[peer] += 1
        try:
            with trio.move_on_after(_HEADER_TIMEOUT_S) as header_scope:
                label = await _read_label(stream)
            if header_scope.cancelled_caught:
                raise _RefusedPush(f"it sent no header within {_HEADER_TIMEOUT_S:g} s")
            # Look up again, because jobs may have started and ended meanwhile.
            receivers = [receiver for receiver in self._receivers.values() if peer in receiver.senders]
            if label is not None:
                receivers = [receiver for receiver in receivers if receiver.label == label]
            if not receivers:
                raise _RefusedPush(f"no job named {label} receives from it" if label else "its job has ended")
            return await self._hold(_Push(peer, stream, receivers))
        finally:
            self._held[peer] -= 1
            if not self._held[peer]:
                del self._held[peer]

    async def _hold(self, push: _Push) -> _Push:
        self._pushes.append(push)
        self._match()
        try:
            with trio.move_on_after(_MAX_WAIT_S):
                await push.decided.wait()
        finally:
            abandoned = push in self._pushes
            if abandoned:
                self._pushes.remove(push)
        if abandoned:
            raise _RefusedPush(f"no job took it within {_MAX_WAIT_S:g} s")
        if not push.receivers:
            raise _RefusedPush("its job has ended")
        return push

    async def _await_push(self, task_id: UUID, timeout_s: float) -> _Push | None:
        receiver = self._receivers.get(task_id)
        if receiver is None:
            return None
        if receiver.waiting_since is None:
            receiver.waiting_since = trio.current_time()
        taker = _Taker(receiver)
        self._takers.append(taker)
        self._match()
        try:
            with trio.move_on_after(timeout_s):
                await taker.served.wait()
        except BaseException:
            if taker.push is not None:  # matched at the moment of its cancellation, so the next call gets it
                self._pushes.insert(0, taker.push)
                self._release(taker.push)
            raise
        finally:
            if taker in self._takers:
                self._takers.remove(taker)
        return taker.push

    def _match(self) -> None:
        """Match waiting pushes with waiting jobs: the oldest push first, with the job that has waited longest."""
        for push in list(self._pushes):
            takers = [
                taker
                for taker in self._takers
                if taker.receiver in push.receivers and taker.receiver.taken[push.peer] < _MAX_TAKEN_PER_PEER
            ]
            if takers:
                taker = min(takers, key=lambda taker: taker.receiver.waiting_since or 0.0)
                receiver = push.taken_by = taker.receiver
                receiver.taken[push.peer] += 1
                taker.push = push
                taker.served.set()
                self._takers.remove(taker)
                self._pushes.remove(push)
                still_waiting = any(other.receiver is receiver for other in self._takers)
                receiver.waiting_since = trio.current_time() if still_waiting else None

    def _release(self, push: _Push) -> None:
        """End the delivery of a push, so that its job may take another push of the sender."""
        if push.taken_by is not None:
            push.taken_by.taken[push.peer] -= 1
            push.taken_by = None
            self._match()


async def _read_label(stream: PushStream) -> str | None:
    """Return `__metadata__.job_id` of a SafeTensors file, or None for any other. Returns the data to the stream."""
    head = bytearray()
    try:
        if not await _read_up_to(stream, head, _HEADER_LENGTH.size):
            return None
        (length,) = _HEADER_LENGTH.unpack(head)
        if length > _MAX_HEADER_BYTES or not await _read_up_to(stream, head, _HEADER_LENGTH.size + length):
            return None
        return _label(json.loads(head[_HEADER_LENGTH.size :]))
    except (ValueError, RecursionError):
        return None
    finally:
        stream.push_back(bytes(head))


async def _read_up_to(stream: PushStream, head: bytearray, size_bytes: int) -> bool:
    while len(head) < size_bytes:
        data = await stream.receive_some(size_bytes - len(head))
        if not data:
            return False
        head += data
    return True


def _label(header: Any) -> str | None:
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    label = metadata.get("job_id") if isinstance(metadata, dict) else None
    return label if isinstance(label, str) else None
