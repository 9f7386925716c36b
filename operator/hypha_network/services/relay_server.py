"""Circuit relay v2, the relay's side, which gateways run."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import trio
from libp2p.relay.circuit_v2.pb import circuit_pb2

from hypha_messages.types import peer_id_to_bytes
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.fairness import FairPlaces, FairRate
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.relay import (
    CONNECTION_FAILED,
    HOP,
    MALFORMED_MESSAGE,
    NO_RESERVATION,
    OK,
    PERMISSION_DENIED,
    RESOURCE_LIMIT_EXCEEDED,
    STOP,
    TIMEOUT_S,
    peer_of,
    receive,
    send,
)
from hypha_network.wire.addresses import Address
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_reservation_log = RateLimitedLogger(logger)
_circuit_log = RateLimitedLogger(logger)

RESERVATION_S = 3600
MAX_RESERVATIONS = 1024
MAX_CIRCUITS = 256
"""Maximum number of circuits. At the limit, the source with most circuits loses its oldest."""
MAX_CIRCUITS_PER_SOURCE = 8
CIRCUIT_S = 120
CIRCUIT_BYTES = 128 * 1024
"""Maximum number of bytes of a circuit in each direction."""
_CHUNK_BYTES = 64 * 1024
_BURST_CHUNKS = 16
"""How many chunks a peer may send at once after a pause, where bulk data is relayed."""


@dataclass(frozen=True)
class BulkLimits:
    """The limits of a relay for bulk data, in bytes per second: of one peer's circuits together, and of all."""

    peer_bytes_per_s: float
    total_bytes_per_s: float = inf


@dataclass(frozen=True)
class _Reservation:
    connection: Connection
    expires: float

    def holds(self) -> bool:
        return self.expires > time.time() and not self.connection.closed.is_set()


class RelayServer:
    """Connects peers to the peers that reserved a slot.

    Circuits are limited in time and bytes, or with `bulk` in their rate. A circuit counts to the peer that opened it.
    """

    def __init__(
        self, host: Host, own_addresses: Callable[[], Sequence[Address]], bulk: BulkLimits | None = None
    ) -> None:
        self._host = host
        self._own_addresses = own_addresses
        self._reservations: dict[str, _Reservation] = {}
        self._circuits = FairPlaces(MAX_CIRCUITS, MAX_CIRCUITS_PER_SOURCE)
        self._rate = bulk and FairRate(
            bulk.peer_bytes_per_s / _CHUNK_BYTES, _BURST_CHUNKS, bulk.total_bytes_per_s / _CHUNK_BYTES
        )
        self._limit = None if bulk else circuit_pb2.Limit(duration=CIRCUIT_S, data=CIRCUIT_BYTES)
        self.handlers: dict[str, StreamHandler] = {HOP: self._serve}

    async def _serve(self, connection: Connection, stream: Stream) -> None:
        with trio.fail_after(TIMEOUT_S):
            request = await receive(stream, circuit_pb2.HopMessage)
        if request.type == circuit_pb2.HopMessage.RESERVE:
            await send(stream, self._reserve(connection))
        elif request.type == circuit_pb2.HopMessage.CONNECT:
            await self._connect(connection, stream, peer_of(request))
        else:
            await send(stream, _status(MALFORMED_MESSAGE))

    def _reserve(self, connection: Connection) -> circuit_pb2.HopMessage:
        self._reservations = {peer_id: held for peer_id, held in self._reservations.items() if held.holds()}
        if connection.relayed:
            return _status(PERMISSION_DENIED)
        if connection.peer_id not in self._reservations and len(self._reservations) >= MAX_RESERVATIONS:
            return _status(RESOURCE_LIMIT_EXCEEDED)
        expires = int(time.time()) + RESERVATION_S
        self._reservations[connection.peer_id] = _Reservation(connection, expires)
        _reservation_log.info(connection.peer_id, "reserved a relay slot")
        answer = _status(OK)
        addresses = [address.of(self._host.peer_id).to_bytes() for address in self._own_addresses()]
        answer.reservation.CopyFrom(circuit_pb2.Reservation(expire=expires, addrs=addresses))
        answer.MergeFrom(circuit_pb2.HopMessage(type=answer.type, limit=self._limit))
        return answer

    async def _connect(self, connection: Connection, stream: Stream, target: str) -> None:
        source = connection.peer_id
        reservation = self._reservations.get(target)
        if reservation is None or not reservation.holds():
            await send(stream, _status(NO_RESERVATION))
        elif connection.relayed:
            await send(stream, _status(PERMISSION_DENIED))
        else:
            with self._circuits.hold(source):
                await self._relay(reservation.connection, stream, source)

    async def _relay(self, target: Connection, stream: Stream, source: str) -> None:
        try:
            with trio.fail_after(TIMEOUT_S):
                onward = await self._announce(target, source)
        except (NetworkError, trio.TooSlowError) as error:
            _circuit_log.info(source, "cannot connect it to %s: %s", target.peer_id, error or "no answer")
            await send(stream, _status(CONNECTION_FAILED))
            return
        try:
            answer = _status(OK)
            answer.MergeFrom(circuit_pb2.HopMessage(type=answer.type, limit=self._limit))
            await send(stream, answer)
            with trio.move_on_after(inf if self._rate else CIRCUIT_S):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, stream, onward, source, nursery.cancel_scope)
                    nursery.start_soon(self._copy, onward, stream, source, nursery.cancel_scope)
        finally:
            onward.reset()
            stream.reset()

    async def _announce(self, target: Connection, source: str) -> Stream:
        stream = await target.open([STOP])
        try:
            peer = circuit_pb2.PeerId(id=peer_id_to_bytes(source))
            kind = circuit_pb2.StopMessage.CONNECT
            await send(stream, circuit_pb2.StopMessage(type=kind, peer=peer, limit=self._limit))
            answer = await receive(stream, circuit_pb2.StopMessage)
        except BaseException:
            stream.reset()
            raise
        if answer.type != circuit_pb2.StopMessage.STATUS or answer.status != OK:
            stream.reset()
            raise RemoteRefused(f"the peer answered with status {answer.status}")
        return stream

    async def _copy(self, source: Stream, target: Stream, payer: str, broken: trio.CancelScope) -> None:
        """Copy one direction of a circuit to its end or its limit."""
        remaining, unpaid = inf if self._rate else CIRCUIT_BYTES, 0
        try:
            while remaining > 0 and (data := await source.receive_some(int(min(remaining, _CHUNK_BYTES)))):
                await target.send_all(data)
                remaining -= len(data)
                unpaid += len(data)
                if self._rate and unpaid >= _CHUNK_BYTES:
                    unpaid -= _CHUNK_BYTES
                    await trio.sleep(self._rate.take_later(payer, trio.current_time()))
            if remaining > 0:
                await target.send_eof()
                return
            _circuit_log.info(source.peer_id, "closing the circuit to %s at its limit of bytes", target.peer_id)
        except NetworkError as error:
            logger.debug("the circuit from %s ended: %s", source.peer_id, error)
        broken.cancel()


def _status(status: int) -> circuit_pb2.HopMessage:
    return circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.STATUS, status=status)  # type: ignore[arg-type]
