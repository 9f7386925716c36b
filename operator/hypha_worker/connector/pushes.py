"""Routes pushes to jobs.

A push names no job, so the sender and, if necessary, the label in its header identify the job. It never reaches a job
of another scheduler than the first one that named the sender, or the sender and the label, among the jobs that live. A
push waits until its job takes it. Until then only the beginning of its header is read, which slows its sender down.
"""

import json
import logging
import re
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import trio

from hypha_contracts.limits import MAX_TAKEN_PER_PEER
from hypha_network.fairness import FairPlaces, FairRate
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.streams import Stream
from hypha_network.wire.yamux_frames import Buffer
from hypha_worker.connector.loopback import LoopbackStream

logger = logging.getLogger(__name__)

_HEADER_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = re.compile(rb'\s*\{\s*"__metadata__"\s*:\s*')
_MAX_LABEL_BYTES: Final = 16 * 1024
"""How much of a header is read to find the label, which is in the metadata at its beginning. It bounds the memory and
the time that a waiting push costs."""
_HEADER_TIMEOUT_S: Final = 30.0
_MAX_WAITING: Final = 128
_MAX_WAITING_PER_PEER: Final = 16
_PUSHES_PER_S: Final = 10.0
_MAX_PUSHES_AT_ONCE: Final = 64
"""Pushes of one peer that the node accepts at once, and then in each second, so that pushes which fail cost little."""
_MAX_WAIT_S: Final = 900.0
_LEAST_BYTES: Final = 1024 * 1024
_LEAST_BYTES_WITHIN_S: Final = 60.0
"""The least rate of a push. Time in which the job does not take data does not count."""


PushStream = Stream | LoopbackStream
"""The stream of a push."""

Deliver = Callable[[str, PushStream], Awaitable[None]]


class _RefusedPush(Exception):  # noqa: N818 - the peer's doing
    """No job gets this push. The message says why."""


@dataclass(eq=False)
class _Receiver:
    """A job that receives pushes. `waiting_since` is when it began to wait for the next one."""

    scheduler: str
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
    place: trio.CancelScope
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
        self._places = FairPlaces(_MAX_WAITING)
        self._rate = FairRate(_PUSHES_PER_S, _MAX_PUSHES_AT_ONCE)
        self._refusal_log = RateLimitedLogger(logger)

    @property
    def waiting(self) -> int:
        """How many pushes wait for their job."""
        return len(self._pushes)

    def add(self, task_id: UUID, scheduler: str, label: str, senders: frozenset[str]) -> None:
        """Let a job receive the pushes of these peers from now on. Peers may name it by `label`."""
        self._receivers[task_id] = _Receiver(scheduler, label, senders)

    def remove(self, task_id: UUID) -> None:
        """Remove a job that has ended, and refuse the pushes that wait only for it."""
        receiver = self._receivers.pop(task_id, None)
        for push in list(self._pushes):
            push.receivers = [other for other in push.receivers if other is not receiver]
            if not push.receivers:
                self._pushes.remove(push)
                push.decided.set()

    async def handle(self, peer: str, stream: PushStream, scheduler: str | None = None) -> None:
        """Serve a push of a peer. Return once a job has received all of it, or the push is reset.

        With `scheduler`, only jobs of this scheduler may get it.
        """
        try:
            push = await self._await_job(peer, stream, scheduler)
            await push.done.wait()
            if push.complete:
                return
        except _RefusedPush as refusal:
            self._refusal_log.warning(peer, "refused a push: %s", refusal)
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

    def _receivers_of(self, peer: str, label: str | None, scheduler: str | None) -> list[_Receiver]:
        """Return the jobs that may get a push: those of the first scheduler that named the sender and the label."""
        named = [
            receiver
            for receiver in self._receivers.values()  # in the order in which the jobs were dispatched
            if peer in receiver.senders and label in (None, receiver.label) and scheduler in (None, receiver.scheduler)
        ]
        return [receiver for receiver in named if receiver.scheduler == named[0].scheduler]

    async def _await_job(self, peer: str, stream: PushStream, scheduler: str | None) -> _Push:
        """Hold a push until a job takes it."""
        receivers = self._receivers_of(peer, None, scheduler)
        if not receivers:
            raise _RefusedPush("no job of this worker names it")
        if not self._rate.take(peer, trio.current_time()):
            raise _RefusedPush(f"it makes more than {_PUSHES_PER_S:g} pushes a second")
        first = receivers[0].scheduler
        if self._places.held_by(first, peer) >= _MAX_WAITING_PER_PEER:
            raise _RefusedPush("too many of its pushes are waiting already")
        with self._places.hold(first, peer) as place:
            label = await self._read_label(stream)
            # Look up again, because jobs may have started and ended meanwhile.
            receivers = self._receivers_of(peer, label, scheduler if label else first)
            if not receivers:
                raise _RefusedPush(f"no job named {label} receives from it" if label else "its job has ended")
            self._places.move(place, receivers[0].scheduler, peer)
            return await self._hold(_Push(peer, stream, receivers, place))
        raise _RefusedPush("too many pushes are waiting already")

    async def _read_label(self, stream: PushStream) -> str | None:
        with trio.move_on_after(_HEADER_TIMEOUT_S):
            return await _read_label(stream)
        raise _RefusedPush(f"it sent no header within {_HEADER_TIMEOUT_S:g} s")

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
                if taker.receiver in push.receivers and taker.receiver.taken[push.peer] < MAX_TAKEN_PER_PEER
            ]
            if takers:
                taker = min(takers, key=lambda taker: taker.receiver.waiting_since or 0.0)
                receiver = push.taken_by = taker.receiver
                receiver.taken[push.peer] += 1
                taker.push = push
                taker.served.set()
                self._takers.remove(taker)
                self._pushes.remove(push)
                self._places.free(push.place)
                still_waiting = any(other.receiver is receiver for other in self._takers)
                receiver.waiting_since = trio.current_time() if still_waiting else None

    def _release(self, push: _Push) -> None:
        """End the delivery of a push, so that its job may take another push of the sender."""
        if push.taken_by is not None:
            push.taken_by.taken[push.peer] -= 1
            push.taken_by = None
            self._match()


async def pieces(stream: PushStream) -> AsyncIterator[Buffer]:
    """Receive a push piece by piece. TooSlowError if its peer stays below the least rate."""
    left_s, received = _LEAST_BYTES_WITHIN_S, 0
    while True:
        began = trio.current_time()
        with trio.fail_after(max(0.0, left_s)):
            data = await stream.receive_some()
        if not data:
            return
        left_s -= trio.current_time() - began
        received += len(data)
        if received >= _LEAST_BYTES:
            left_s, received = _LEAST_BYTES_WITHIN_S, 0
        yield data


async def _read_label(stream: PushStream) -> str | None:
    """Return `__metadata__.job_id` of a SafeTensors file, or None for any other. Returns the data to the stream.

    A label is found where writers of SafeTensors put it: at the beginning of the header.
    """
    head = bytearray()
    try:
        if not await _read_up_to(stream, head, _HEADER_LENGTH.size):
            return None
        (length,) = _HEADER_LENGTH.unpack(head)
        await _read_up_to(stream, head, _HEADER_LENGTH.size + min(length, _MAX_LABEL_BYTES))
        return _label(bytes(head[_HEADER_LENGTH.size :]))
    finally:
        stream.push_back(bytes(head))


async def _read_up_to(stream: PushStream, head: bytearray, size_bytes: int) -> bool:
    while len(head) < size_bytes:
        data = await stream.receive_some(size_bytes - len(head))
        if not data:
            return False
        head += data
    return True


def _label(header: bytes) -> str | None:
    if (found := _METADATA.match(header)) is None:
        return None
    try:
        metadata, _ = json.JSONDecoder().raw_decode(header[found.end() :].decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    label = metadata.get("job_id") if isinstance(metadata, dict) else None
    return label if isinstance(label, str) else None
