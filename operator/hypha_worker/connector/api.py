"""The connector API, which the bridges of this node's jobs call over HTTP.

The bearer token identifies the job, and the job's specification limits its calls. A job may ask its own scheduler for
slices, pull the assigned slices from their providers, and exchange pushes with the peers that it names.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar
from uuid import UUID

import trio
from pydantic import ValidationError

from hypha_contracts.connector_api import (
    NEXT_SLICE,
    PULL_SLICE,
    RECEIVER_PARAMETER,
    REPORT_PROGRESS,
    REPORT_TELEMETRY,
    SENDER_HEADER,
    TAKE_PUSH,
    TAKE_PUSH_S,
    AssignedSlice,
    ErrorCode,
    NextSlice,
    PullSlice,
)
from hypha_contracts.connector_api import PUSH as PUSH_CALL
from hypha_contracts.job_telemetry import TelemetryBatch
from hypha_contracts.trace_context import HEADER
from hypha_messages.api import API, DataAssignment, RequestData
from hypha_messages.job import PeersReference, SchedulerReference
from hypha_messages.streams import PULL, PUSH, encode_pull_header
from hypha_messages.types import Message
from hypha_messages.validation import describe
from hypha_network.changes import Changes
from hypha_network.errors import (
    ConnectionLost,
    NetworkClosed,
    NetworkError,
    PeerUnreachable,
    RemoteRefused,
    StreamReset,
)
from hypha_network.fairness import FairRate
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from hypha_worker.connector.http_server import Exchange, HttpError
from hypha_worker.connector.loopback import LoopbackStream, loopback
from hypha_worker.connector.pushes import PushRouter, PushStream, pieces
from hypha_worker.job import Job
from hypha_worker.progress import Report, scheduler_request
from hypha_worker.telemetry import Telemetry, Transfer
from hypha_worker.traces.intake import TelemetryIntake

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_M = TypeVar("_M", bound=Message)

_REQUEST_TIMEOUT_S: Final = 10.0
_OPEN_TIMEOUT_S: Final = 30.0
_STALL_TIMEOUT_S: Final = 600.0
"""How long a peer may neither take nor send a byte. A parameter server may read its senders one after another."""
_MAX_CALLS_PER_JOB: Final = 64
_CALLS_PER_S: Final = 100.0
_MAX_CALLS_AT_ONCE: Final = 200
"""Calls of one job that the node serves at once, and then in each second. Others wait for their turn."""
_MAX_ASSIGNMENTS: Final = 4096


@dataclass
class _Session:
    """A job that may call the API.

    Attributes:
        remembers: whether all assigned slices are known. False for adopted jobs.
        assigned: the slices that it may pull.
        calls: how many of its calls are under way.
    """

    job: Job
    remembers: bool
    assigned: dict[PullSlice, None] = field(default_factory=dict)
    calls: int = 0

    def __post_init__(self) -> None:
        self.datasets = set()
        for reference in self.job.spec.executor.config.fetched:
            if isinstance(reference, SchedulerReference):
                self.datasets.add(reference.dataset)
            elif isinstance(reference, PeersReference) and (wanted := reference.resource):
                for peer in reference.peers:
                    self.assigned[PullSlice(provider=peer, dataset=wanted.dataset, index=wanted.index)] = None

    def assign(self, slice_: PullSlice) -> None:
        self.assigned[slice_] = None
        if len(self.assigned) > _MAX_ASSIGNMENTS:
            del self.assigned[next(iter(self.assigned))]

    def may_pull(self, slice_: PullSlice) -> bool:
        return slice_ in self.assigned or (not self.remembers and slice_.dataset in self.datasets)


Authenticate = Callable[[str], Awaitable[UUID | None]]
"""Returns the task whose bridge presented this token from this source, or None. Raises HttpError (503) if the token
cannot be checked now."""


class Connector:
    """Serves the bridges of this node's jobs. `handle` is the handler for `http_server.serve`.

    Args:
        nursery: serves pushes from one job of this node to another.
        authenticate: finds the task whose bridge presented a token.
        record_progress: called with each report of a job after its scheduler has received it.
    """

    def __init__(
        self,
        network: Network,
        pushes: PushRouter,
        nursery: trio.Nursery,
        telemetry: Telemetry | None = None,
        *,
        authenticate: Authenticate,
        record_progress: Callable[[UUID, Report], None],
    ) -> None:
        self._network = network
        self._pushes = pushes
        self._identify = authenticate
        self._record_progress = record_progress
        self._nursery = nursery
        self._telemetry = telemetry or Telemetry()
        self._intake = TelemetryIntake(self._telemetry.traces, self._telemetry.job_metrics)
        self._sessions: dict[UUID, _Session] = {}
        self._rate = FairRate(_CALLS_PER_S, _MAX_CALLS_AT_ONCE)
        self._calls: dict[tuple[str, str], Callable[[_Session, Exchange], Awaitable[None]]] = {
            NEXT_SLICE: self._next_slice,
            PULL_SLICE: self._pull,
            PUSH_CALL: self._push,
            TAKE_PUSH: self._take_push,
            REPORT_PROGRESS: self._progress,
            REPORT_TELEMETRY: self._take_telemetry,
        }
        self._asking = 0  # calls that wait for a scheduler's answer
        self._answered = Changes()
        self._stopping = False

    def add(self, job: Job, *, adopted: bool = False) -> None:
        """Serve the bridge of this job and the pushes of its peers from now on."""
        self._sessions[job.task_id] = _Session(job, remembers=not adopted)
        self._pushes.add(job.task_id, job.scheduler, str(job.spec.job_id), job.spec.senders)

    def scheduler_of(self, job_id: UUID) -> str | None:
        """Return the scheduler for which tasks of this job run here, or None if none run."""
        jobs = (session.job for session in self._sessions.values())
        return next((job.scheduler for job in jobs if job.spec.job_id == job_id), None)

    def remove(self, task_id: UUID) -> None:
        """Stop serving a job that has ended."""
        self._sessions.pop(task_id, None)
        self._pushes.remove(task_id)
        self._intake.end(task_id)

    async def stop(self) -> None:
        """Refuse new calls, and return once bridges have the answers of schedulers that they wait for.

        A scheduler announces the end of a round only once. Bridges repeat calls for bulk data.
        """
        self._stopping = True
        with trio.move_on_after(_REQUEST_TIMEOUT_S):
            await self._answered.until(lambda: not self._asking)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        session = await self._authenticate(exchange.headers.get("authorization", ""))
        call = self._calls.get((exchange.method, exchange.path))
        if call is None:
            known = ", ".join(map(str, self._calls))
            raise HttpError(ErrorCode.NO_SUCH_CALL, f"no call {exchange.method} {exchange.path}; known are {known}")
        if session.calls >= _MAX_CALLS_PER_JOB:
            raise HttpError(ErrorCode.UNAVAILABLE, f"the job has {_MAX_CALLS_PER_JOB} calls under way")
        if self._stopping:
            raise HttpError(ErrorCode.UNAVAILABLE, "the node is about to stop")
        exchange.mark_authenticated()
        asks = call in (self._next_slice, self._progress)
        session.calls += 1
        self._asking += asks
        try:
            await trio.sleep(self._rate.take_later(session.job.task_id, trio.current_time()))
            with self._intake.call(session.job, (exchange.method, exchange.path), exchange.headers.get(HEADER)):
                await call(session, exchange)
        finally:
            session.calls -= 1
            self._asking -= asks
            self._answered.notify()

    async def _authenticate(self, authorization: str) -> _Session:
        scheme, _, token = authorization.partition(" ")
        task_id = await self._identify(token.strip()) if scheme.lower() == "bearer" else None
        session = self._sessions.get(task_id) if task_id else None
        if session is None:
            raise HttpError(ErrorCode.UNAUTHORIZED, "the token belongs to no job that runs here")
        return session

    async def _next_slice(self, session: _Session, exchange: Exchange) -> None:
        wanted = _validate(NextSlice, await exchange.read_json())
        if wanted.scheduler != session.job.scheduler:
            raise HttpError(ErrorCode.FORBIDDEN, f"{wanted.scheduler} is not this job's scheduler")
        async with exchange.until_disconnected():
            request = RequestData(dataset=wanted.dataset)
            answer = await self._ask(wanted.scheduler, API, request, DataAssignment)
        if answer.error is not None:
            raise HttpError(ErrorCode.PEER_FAILED, f"the scheduler has no slice of {wanted.dataset!r}: {answer.error}")
        if answer.data_provider is None or answer.index is None:
            raise HttpError(ErrorCode.NO_SLICE, f"the scheduler has no slice of {wanted.dataset!r} for this job")
        session.assign(PullSlice(provider=answer.data_provider, dataset=wanted.dataset, index=answer.index))
        await exchange.answer_json(
            AssignedSlice(provider=answer.data_provider, index=answer.index).model_dump(mode="json")
        )

    async def _pull(self, session: _Session, exchange: Exchange) -> None:
        wanted = _validate(PullSlice, await exchange.read_json())
        if not session.may_pull(wanted):
            raise HttpError(
                ErrorCode.FORBIDDEN,
                f"slice {wanted.index} of {wanted.dataset!r} at {wanted.provider} is not assigned to this job",
            )
        async with exchange.until_disconnected():
            with (
                _peer_errors(wanted.provider),
                self._telemetry.transfer(wanted.provider, "slice", "receive") as transfer,
            ):
                stream = await _within(_OPEN_TIMEOUT_S, self._network.open_stream(wanted.provider, PULL))
                try:
                    await _within(_OPEN_TIMEOUT_S, stream.send_all(encode_pull_header(wanted)))
                    await self._relay_slice(wanted, stream, exchange, transfer)
                finally:
                    stream.reset()
        self._network.favour(wanted.provider)

    async def _relay_slice(self, wanted: PullSlice, stream: Stream, exchange: Exchange, transfer: Transfer) -> None:
        data = await _within(_STALL_TIMEOUT_S, stream.receive_some())
        if not data:
            raise HttpError(ErrorCode.NOT_FOUND, f"{wanted.provider} has no slice {wanted.index} of {wanted.dataset!r}")
        await exchange.start_stream({})
        # The reference data node ends a slice with a reset. The bridge checks whether the slice is complete.
        with contextlib.suppress(StreamReset):
            while data:
                transfer.size_bytes += len(data)
                await exchange.send_piece(data)
                data = await _within(_STALL_TIMEOUT_S, stream.receive_some())
        await exchange.end_stream()

    async def _push(self, session: _Session, exchange: Exchange) -> None:
        peer = exchange.query.get(RECEIVER_PARAMETER, "")
        if peer not in session.job.spec.receivers:
            raise HttpError(ErrorCode.FORBIDDEN, f"this job does not push to peer {peer!r}")
        with _peer_errors(peer), self._telemetry.transfer(peer, "push", "transmit") as transfer:
            stream = await self._open_push(peer, session.job.scheduler)
            delivered = False
            try:
                async for data in exchange.pieces():
                    transfer.size_bytes += len(data)
                    await _within(_STALL_TIMEOUT_S, stream.send_all(data))
                await stream.send_eof()
                async with exchange.until_disconnected():
                    await self._await_delivery(stream)
                delivered = True
            finally:
                if not delivered:
                    stream.reset()
            await stream.aclose()
        self._network.favour(peer)
        await exchange.answer_empty()

    async def _open_push(self, peer: str, scheduler: str) -> PushStream:
        if peer != self._network.peer_id:
            return await _within(_OPEN_TIMEOUT_S, self._network.open_stream(peer, PUSH))
        near, far = loopback()
        self._nursery.start_soon(self._take_own, far, scheduler)
        return near

    async def _take_own(self, stream: LoopbackStream, scheduler: str) -> None:
        try:
            await self._pushes.handle(self._network.peer_id, stream, scheduler)
            await stream.aclose()
        except NetworkError as error:
            logger.debug("a push from one job of this worker to another: %s", error)
            stream.reset()

    async def _await_delivery(self, stream: PushStream) -> None:
        """Return once the peer has read everything and closed its side; RemoteRefused if it resets the stream."""
        try:
            if await _within(_STALL_TIMEOUT_S, stream.receive_some()):
                raise RemoteRefused("it answered a push, which has no answer")
        except ConnectionLost:
            raise
        except StreamReset as error:
            raise RemoteRefused("it did not take all of the file") from error

    async def _take_push(self, session: _Session, exchange: Exchange) -> None:
        await exchange.read_nothing()

        async def deliver(peer: str, stream: PushStream) -> None:
            with _peer_errors(peer), self._telemetry.transfer(peer, "push", "receive") as transfer:
                await exchange.start_stream({SENDER_HEADER: peer})
                async for data in pieces(stream):
                    transfer.size_bytes += len(data)
                    await exchange.send_piece(data)
                await exchange.end_stream()
            self._network.favour(peer)

        async with exchange.until_disconnected():
            taken = await self._pushes.take(session.job.task_id, deliver, TAKE_PUSH_S)
        if not taken:
            await exchange.answer_empty()

    async def _progress(self, session: _Session, exchange: Exchange) -> None:
        report = _validate(Report, await exchange.read_json())
        async with exchange.until_disconnected():
            answer = await self._ask(session.job.scheduler, *scheduler_request(session.job.spec.job_id, report))
        self._record_progress(session.job.task_id, report)
        await exchange.answer_json(answer.model_dump(mode="json"))

    async def _take_telemetry(self, session: _Session, exchange: Exchange) -> None:
        if self._intake.may_report(session.job):
            self._intake.take(session.job, _validate(TelemetryBatch, await exchange.read_json()))
        await exchange.answer_empty()

    async def _ask(self, peer: str, protocol: Any, message: Message, expected: type[_T]) -> _T:
        with _peer_errors(peer):
            answer = await self._network.request(peer, protocol, message, timeout_s=_REQUEST_TIMEOUT_S)
        if not isinstance(answer, expected):
            raise HttpError(
                ErrorCode.PEER_FAILED, f"{peer} answered with {type(answer).__name__}, expected {expected.__name__}"
            )
        return answer


async def _within(timeout_s: float, action: Awaitable[_T]) -> _T:
    with trio.fail_after(timeout_s):
        return await action


@contextlib.contextmanager
def _peer_errors(peer: str) -> Iterator[None]:
    """Turn errors of a peer into answers: 503 if another attempt may reach the peer, otherwise 502."""
    try:
        yield
    except (PeerUnreachable, NetworkClosed) as error:
        raise HttpError(ErrorCode.UNAVAILABLE, f"{peer}: {error}") from error
    except NetworkError as error:
        raise HttpError(ErrorCode.PEER_FAILED, f"{peer}: {error}") from error
    except trio.TooSlowError as error:
        raise HttpError(ErrorCode.PEER_FAILED, f"{peer} was silent for too long") from error


def _validate(model: type[_M], value: Any) -> _M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise HttpError(ErrorCode.INVALID, describe(error, "body"), HTTPStatus.UNPROCESSABLE_ENTITY) from error
