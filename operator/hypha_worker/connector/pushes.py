"""Which job a push is for. A push names no job: it is known by its sender and, where that is not enough, by its label.

A push waits, all but its header unread, so that its sender is held back, until a job that names the sender takes it.
"""

import contextlib
import json
import logging
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import UUID

import trio

from hypha_network.errors import NetworkError
from hypha_network.rate_limited_log import RateLimitedLogger

logger = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview

_HEADER_LENGTH: Final = struct.Struct("<Q")
_MAX_HEADER_BYTES: Final = 2 * 1024 * 1024
_HEADER_TIMEOUT_S: Final = 30.0
_MAX_WAITING: Final = 128
_MAX_WAITING_PER_PEER: Final = 16
_MAX_TAKEN_PER_PEER: Final = 2
"""Pushes of one peer that a job receives at once: fewer than its bridge can, so that one that stops holds up itself."""
_MAX_WAIT_S: Final = 900.0
_NOT_TAKEN: Final = b"\0"
"""What the sender of a push is told that no job has taken whole, before the stream is reset: a reset alone is how the
reference ends what it has read."""
_REFUSAL_TIMEOUT_S: Final = 5.0


class PushStream(Protocol):
    """What pushes are received from."""

    async def receive_some(self, max_bytes: int | None = None, /) -> Buffer:
        """Return what has arrived; empty at the end."""

    def push_back(self, data: Buffer, /) -> None:
        """Give back what was received, to be received again."""

    async def send_all(self, data: bytes, /) -> None:
        """Answer; NetworkError if the sender has gone."""

    def reset(self) -> None:
        """Break off."""


Deliver = Callable[[str, PushStream], Awaitable[None]]


class _RefusedPush(Exception):  # noqa: N818 - the peer's doing
    """No job gets this push; says why."""


@dataclass(eq=False)
class _Receiver:
    """A job that receives pushes; `hungry_since` is when it began to wait for the next one."""

    label: str
    senders: frozenset[str]
    hungry_since: float | None = None
    taken: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class _Push:
    """A push that waits for one of the jobs it may be for."""

    peer: str
    stream: PushStream
    receivers: list[_Receiver]
    taken_by: _Receiver | None = None
    settled: trio.Event = field(default_factory=trio.Event)  # its delivery has begun, or nobody is left to take it
    done: trio.Event = field(default_factory=trio.Event)
    whole: bool = False


@dataclass(eq=False)
class _Taker:
    """A job's call that waits for a push."""

    receiver: _Receiver
    push: _Push | None = None
    served: trio.Event = field(default_factory=trio.Event)


class PushRouter:
    """Brings pushes and jobs together."""

    def __init__(self) -> None:
        self._receivers: dict[UUID, _Receiver] = {}
        self._pushes: list[_Push] = []
        self._takers: list[_Taker] = []
        self._held: Counter[str] = Counter()
        self._refusal_log = RateLimitedLogger(logger)

    def add(self, task_id: UUID, label: str, senders: frozenset[str]) -> None:
        """From now on the job receives what these peers push; `label` is how they may name it."""
        self._receivers[task_id] = _Receiver(label, senders)

    def remove(self, task_id: UUID) -> None:
        """The job has ended: what waits for it alone is broken off."""
        receiver = self._receivers.pop(task_id, None)
        for push in list(self._pushes):
            push.receivers = [other for other in push.receivers if other is not receiver]
            if not push.receivers:
                self._pushes.remove(push)
                push.settled.set()

    async def handle(self, peer: str, stream: PushStream) -> None:
        """Serve a push of a peer: returns once a job has all of it, or the peer was told that none has."""
        try:
            push = await self._admit(peer, stream)
            await push.done.wait()
            if push.whole:
                return
        except _RefusedPush as refusal:
            self._refusal_log.warning(peer, "refused a push: %s", refusal)
        with trio.move_on_after(_REFUSAL_TIMEOUT_S), contextlib.suppress(NetworkError):
            await stream.send_all(_NOT_TAKEN)
        stream.reset()

    async def take(self, task_id: UUID, deliver: Deliver, timeout_s: float) -> bool:
        """Wait for the next push for a job and have `deliver(peer, stream)` receive it.

        Returns:
            Whether there was one. When `deliver` raises or is cancelled, the push is broken off.
        """
        push = await self._await_push(task_id, timeout_s)
        if push is None:
            return False
        push.settled.set()
        try:
            await deliver(push.peer, push.stream)
            push.whole = True
        finally:
            push.done.set()
            self._release(push)
        return True

    async def _admit(self, peer: str, stream: PushStream) -> _Push:
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
            # Looked up again: jobs may have come and gone meanwhile.
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
                await push.settled.wait()
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
        if receiver.hungry_since is None:
            receiver.hungry_since = trio.current_time()
        taker = _Taker(receiver)
        self._takers.append(taker)
        self._match()
        try:
            with trio.move_on_after(timeout_s):
                await taker.served.wait()
        except BaseException:
            if taker.push is not None:  # served in the very moment it was cancelled: the next one gets it
                self._pushes.insert(0, taker.push)
                self._release(taker.push)
            raise
        finally:
            if taker in self._takers:
                self._takers.remove(taker)
        return taker.push

    def _match(self) -> None:
        """Give what waits to who waits: the oldest push first, to the job that has waited longest."""
        for push in list(self._pushes):
            takers = [
                taker
                for taker in self._takers
                if taker.receiver in push.receivers and taker.receiver.taken[push.peer] < _MAX_TAKEN_PER_PEER
            ]
            if takers:
                taker = min(takers, key=lambda taker: taker.receiver.hungry_since or 0.0)
                receiver = push.taken_by = taker.receiver
                receiver.taken[push.peer] += 1
                taker.push = push
                taker.served.set()
                self._takers.remove(taker)
                self._pushes.remove(push)
                still_hungry = any(other.receiver is receiver for other in self._takers)
                receiver.hungry_since = trio.current_time() if still_hungry else None

    def _release(self, push: _Push) -> None:
        """A push is no longer being received: its sender may have another one taken."""
        if push.taken_by is not None:
            push.taken_by.taken[push.peer] -= 1
            push.taken_by = None
            self._match()


async def _read_label(stream: PushStream) -> str | None:
    """Return `__metadata__.job_id` of a SafeTensors file; None for any other. All that was read is given back."""
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
