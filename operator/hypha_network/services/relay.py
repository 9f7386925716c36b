"""Circuit relay v2, the client's side: gateways connect peers to this node, and this node to peers."""

import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from libp2p.relay.circuit_v2.pb import circuit_pb2

from hypha_contracts.backoff import Backoff
from hypha_messages.types import peer_id_from_bytes, peer_id_to_bytes
from hypha_network.connection import Connection
from hypha_network.errors import DialError, NetworkError, RemoteRefused
from hypha_network.fairness import FairPlaces
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.pauses import Pauses
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.recent_peers import RecentPeers
from hypha_network.wire import addresses
from hypha_network.wire.addresses import Address
from hypha_network.wire.multistream import prefixed, read_prefixed
from hypha_network.wire.streams import Stream
from hypha_network.wire.transport import RawConnection

logger = logging.getLogger(__name__)
_reservation_log = RateLimitedLogger(logger)
_failure_log = RateLimitedLogger(logger)

HOP: Final = "/libp2p/circuit/relay/0.2.0/hop"
STOP: Final = "/libp2p/circuit/relay/0.2.0/stop"
MAX_MESSAGE_BYTES = 4096
TIMEOUT_S = 10.0
RETRIES = Backoff(first_s=10.0, max_s=600.0, jitter=0.5)
"""The pauses while a relay grants no slot. It counts each request against all nodes behind one address."""
MAX_REFRESH_S = 12 * 3600.0
MIN_REFRESH_S = 30.0
REFUSED = Backoff(first_s=2.0, max_s=120.0)
"""The pauses after a relay refused a circuit, because each request costs this node one of few, whatever the answer."""
LIMITED_S = 3600.0
"""How long this node does not ask a limited relay for a circuit for bulk data."""
IDLE_S = 60.0
"""How long a relayed connection may stay unused. Frequent requests, such as renewals of a lease, share one circuit."""
BESIDE_DIRECT_S = 1.0
"""How long it may stay unused beside a direct connection. Short, because the reference sends bulk data over either."""
CHECK_S = 0.5
MAX_INBOUND_CIRCUITS = 64
"""Maximum number of circuits to this node through one relay. At the limit, the source with most loses its oldest."""
MAX_INBOUND_CIRCUITS_PER_SOURCE = 8
_MAX_ADDRESSES = 4

OK: Final = 100
PERMISSION_DENIED: Final = 202
NO_RESERVATION: Final = 204
CONNECTION_FAILED: Final = 203
RESOURCE_LIMIT_EXCEEDED: Final = 201
MALFORMED_MESSAGE: Final = 400


@dataclass(frozen=True)
class Reservation:
    """A slot on a relay: when it expires, the addresses of this node through the relay, and whether that is limited."""

    expires: float
    addresses: tuple[Address, ...]
    limited: bool


def refresh_in_s(expires: float, now: float) -> float:
    """Return the number of seconds after which to renew a reservation: at most three quarters of its remaining time.

    It varies, so that the nodes behind one address, which share what a relay grants it, do not renew in step.
    """
    remaining_s = (expires - now) * random.uniform(0.65, 0.75)  # noqa: S311 - not for secrets
    return min(MAX_REFRESH_S, max(MIN_REFRESH_S, remaining_s))


def is_limited(message: Any) -> bool:
    """Return whether a relay's message announces a circuit that is limited in bytes or time."""
    return bool(message.limit.data or message.limit.duration)


class Relays:
    """The relays through which peers can reach this node, and its connections to peers through relays."""

    def __init__(self, host: Host, on_changed: Callable[[], Awaitable[None]]) -> None:
        self._host = host
        self._on_changed = on_changed
        self._reservations: dict[Connection, Reservation] = {}
        self._circuits: defaultdict[str, FairPlaces] = defaultdict(
            lambda: FairPlaces(MAX_INBOUND_CIRCUITS, MAX_INBOUND_CIRCUITS_PER_SOURCE)
        )
        """By relay, the circuits to this node. Only relays that hold a reservation have any."""
        self._refusals = Pauses(REFUSED)
        self._limited = RecentPeers(LIMITED_S)
        """The relays whose circuits were limited."""
        self.handlers: dict[str, StreamHandler] = {STOP: self._accept}

    @property
    def reservations(self) -> list[str]:
        """The peer ids of the relays that hold a reservation of this node."""
        return list(dict.fromkeys(c.peer_id for c in self._reservations if not c.closed.is_set()))

    @property
    def bulk(self) -> bool:
        """Whether one of these relays carries bulk data."""
        return any(not held.limited for c, held in self._reservations.items() if not c.closed.is_set())

    def carries_bulk(self, relay: str) -> bool | None:
        """Whether a relay carries bulk data, as its reservation or its latest circuit says; None if this is unknown."""
        held = [held.limited for c, held in self._reservations.items() if c.peer_id == relay and not c.closed.is_set()]
        if held:
            return not any(held)
        return False if relay in self._limited else None

    def own_addresses(self) -> list[Address]:
        """Return the addresses of this node through relays."""
        return list(dict.fromkeys(a for reservation in self._reservations.values() for a in reservation.addresses))

    async def keep_reserved(self, connection: Connection) -> None:
        """Reserve a slot on a relay, and renew it for as long as the connection lasts."""
        retries = RETRIES.pauses()
        try:
            while True:
                try:
                    reservation = await self._reserve(connection)
                except (NetworkError, trio.TooSlowError) as error:
                    _failure_log.warning(
                        connection.peer_id, "cannot reserve a relay slot on it: %s", error or "no answer"
                    )
                    held = self._reservations.get(connection)
                    if held is not None and held.expires < time.time():
                        del self._reservations[connection]
                    await trio.sleep(next(retries))
                    continue
                retries = RETRIES.pauses()
                fresh = connection not in self._reservations
                self._reservations[connection] = reservation
                self._host.changes.notify()
                if fresh:
                    through = ", ".join(map(str, reservation.addresses))
                    _reservation_log.info(connection.peer_id, "this node is reachable through %s", through)
                    await self._on_changed()
                await trio.sleep(refresh_in_s(reservation.expires, time.time()))
        finally:
            self._reservations.pop(connection, None)
            self._host.changes.notify()

    async def _reserve(self, connection: Connection) -> Reservation:
        with trio.fail_after(TIMEOUT_S):
            stream = await connection.open([HOP])
            try:
                await send(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE))
                answer = await receive(stream, circuit_pb2.HopMessage)
                await stream.send_eof()
            finally:
                stream.reset()
        if answer.type != circuit_pb2.HopMessage.STATUS or answer.status != OK:
            raise RemoteRefused(f"the relay answered with status {answer.status}")
        relay = connection.peer_id
        known = [connection.address, *addresses.usable(answer.reservation.addrs, _MAX_ADDRESSES)]
        through = (a.behind(relay, self._host.peer_id) for a in known if a.relay is None)
        return Reservation(float(answer.reservation.expire), tuple(dict.fromkeys(through)), is_limited(answer))

    async def _accept(self, connection: Connection, stream: Stream) -> None:
        """Accept a connection that a relay announces from a peer."""
        with trio.fail_after(TIMEOUT_S):
            message = await receive(stream, circuit_pb2.StopMessage)
            if connection.peer_id not in self.reservations:
                await send(stream, _status(PERMISSION_DENIED))
                raise RemoteRefused(f"{connection.peer_id} relays a connection without a reservation of this node")
            source = peer_of(message)
            await send(stream, _status(OK))
        raw = RawConnection(stream, connection.address.behind(connection.peer_id, source), is_initiator=False)
        raw.limited = is_limited(message)
        with self._circuits[connection.peer_id].hold(source):
            relayed = await self._host.upgrade(raw, None)
            try:
                if relayed.peer_id != source:
                    raise RemoteRefused(f"{connection.peer_id} announced {source}, but {relayed.peer_id} connected")
                await relayed.closed.wait()
            finally:
                relayed.close()

    async def close_once_unused(self, connection: Connection) -> None:
        """Close a relayed connection once nothing uses it, because relays grant few circuits. Ignore a direct one.

        Beside a direct connection it is closed soon, because some peers choose among their connections at random.
        """
        while connection.relayed:
            await trio.sleep(CHECK_S)
            best = self._host.connection(connection.peer_id)
            beside_direct = best is not None and not best.relayed
            if connection.idle_s() >= (BESIDE_DIRECT_S if beside_direct else IDLE_S):
                logger.debug("closing the relayed connection with %s, which nothing uses", connection.peer_id)
                connection.close()

    async def dial(self, address: Address, *, bulk: bool = False) -> RawConnection:
        """Connect to a peer through a relay; DialError if that fails, or with `bulk` if the relay is limited."""
        relay, target = address.relay, address.peer_id
        if relay is None or target is None:
            raise DialError(f"{address} names no peer behind the relay; append /p2p/<peer id>")
        if (wait_s := max(self._refusals.wait_s(relay), self._refusals.wait_s(relay, target))) > 0:
            raise DialError(f"the relay {relay} refused to connect to {target}; it is asked again in {wait_s:.0f} s")
        try:
            with trio.fail_after(TIMEOUT_S):
                stream = await self._host.open_stream(relay, [HOP], [address.of_relay()])
                try:
                    peer = circuit_pb2.PeerId(id=peer_id_to_bytes(target))
                    await send(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.CONNECT, peer=peer))
                    answer = await receive(stream, circuit_pb2.HopMessage)
                except BaseException:
                    stream.reset()
                    raise
        except trio.TooSlowError:
            raise DialError(f"{address}: the relay did not connect to the peer within {TIMEOUT_S:g} s") from None
        if answer.type != circuit_pb2.HopMessage.STATUS or answer.status != OK:
            stream.reset()
            if answer.status == RESOURCE_LIMIT_EXCEEDED:
                self._refusals.add(relay)
            elif answer.status == NO_RESERVATION:
                self._refusals.add(relay, target)
            raise DialError(f"the relay {relay} did not connect to {target}: status {answer.status}")
        self._refusals.remove(relay)
        self._refusals.remove(relay, target)
        raw = RawConnection(stream, address, is_initiator=True)
        raw.limited = is_limited(answer)
        if raw.limited:
            self._limited.add(relay)
        if raw.limited and bulk:
            stream.reset()
            raise DialError(f"the relay {relay} limits bytes and time")
        return raw


def _status(status: int) -> circuit_pb2.StopMessage:
    return circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.STATUS, status=status)  # type: ignore[arg-type]


async def send(stream: Stream, message: Message) -> None:
    """Send a relay message."""
    await stream.send_all(prefixed(message.SerializeToString()))


async def receive(stream: Stream, kind: type[Any]) -> Any:
    """Read a relay message; RemoteRefused if it is malformed."""
    try:
        return kind.FromString(await read_prefixed(stream, MAX_MESSAGE_BYTES))
    except ProtobufError as error:
        raise RemoteRefused(f"the relay message is malformed: {error}") from error


def peer_of(message: Any) -> str:
    """Return the peer that a message names; RemoteRefused if it names no valid peer id."""
    try:
        return peer_id_from_bytes(message.peer.id)
    except (ValueError, IndexError) as error:
        raise RemoteRefused(f"the relay message names no valid peer id: {error}") from error
