"""DCUtR: two nodes with a relayed connection make a direct one, by reversal or through both of their NATs."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

import trio
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from hypha_contracts.backoff import Backoff
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.pauses import Pauses
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.relay import receive, send
from hypha_network.wire import addresses
from hypha_network.wire.addresses import Address, Network, TransportName
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_punch_log = RateLimitedLogger(logger)

DCUTR: Final = "/libp2p/dcutr"
MAX_ADDRESSES: Final = 4
"""Maximum number of addresses of a peer that one attempt dials."""
MAX_ATTEMPTS: Final = 3
PAUSES: Final = Backoff(first_s=60.0, max_s=3600.0)
"""The pauses after as many failed attempts with a peer, whichever side began them."""
MAX_AT_ONCE = 32
"""With how many peers this node punches at once. Further ones are refused."""
EXCHANGE_TIMEOUT_S = 10.0
ATTEMPT_S = 4.0
"""How long an attempt dials: time for two more SYNs, and for the handshake over a slow path."""
IDENTIFY_S = 2.0
"""How long to wait for the addresses of a peer that has just connected through a relay."""
REVERSAL_S = 3.0
NEXT_S = 8.0
"""How long the side that does not begin waits for the next attempt."""
PUNCHED_S = 20.0
"""How long a bulk stream waits at most for attempts."""

CONNECT, SYNC = HolePunch.CONNECT, HolePunch.SYNC


class HolePuncher:
    """Replaces relayed connections by direct ones. The side to which a relayed connection was made begins."""

    def __init__(
        self,
        host: Host,
        own_addresses: Callable[[], Iterable[Address]],
        addresses_of: Callable[[str], Collection[Address]],
    ) -> None:
        self._host = host
        self._own_addresses = own_addresses
        self._addresses_of = addresses_of
        self._failures = Pauses(PAUSES, free=MAX_ATTEMPTS - 1)
        self._reversals = Pauses(PAUSES, free=MAX_ATTEMPTS - 1)
        self._done: WeakSet[Connection] = WeakSet()
        """The relayed connections whose attempts have ended."""
        self._following: WeakKeyDictionary[Connection, trio.CancelScope] = WeakKeyDictionary()
        """The scopes in which this node waits for attempts that the peer begins."""
        self._beginning: set[str] = set()
        """The peers with which this node begins attempts."""
        self._dials: dict[str, trio.CancelScope] = {}
        """By peer, the attempt under way. A new one cancels it, because the peer has ended it then."""
        self.handlers: dict[str, StreamHandler] = {DCUTR: self._answer}

    async def replace_relayed(self, connection: Connection) -> None:
        """Try to replace a relayed connection by a direct one. Ignore a direct one."""
        if not connection.relayed:
            return
        try:
            if connection.inbound:
                await self._begin(connection)
            else:
                await self._follow(connection)
        finally:
            self._done.add(connection)
            self._host.changes.notify()

    async def wait(self, peer_id: str) -> None:
        """Wait until no attempt to reach a peer directly is under way, for a limited time."""

        def over() -> bool:
            relayed = self._host.connections.get(peer_id, ())
            ended = all(connection in self._done for connection in relayed) and peer_id not in self._dials
            return self._host.has_direct(peer_id) or ended

        with trio.move_on_after(PUNCHED_S):
            await self._host.changes.until(over)

    async def _begin(self, connection: Connection) -> None:
        peer_id = connection.peer_id
        await self._reverse(peer_id)
        await self._host.changes.until(lambda: peer_id not in self._beginning and peer_id not in self._dials)
        self._beginning.add(peer_id)
        try:
            while not self._host.has_direct(peer_id) and self._failures.wait_s(peer_id) <= 0:
                await self._attempt(connection)
        except (NetworkError, trio.TooSlowError) as error:
            logger.debug("no hole is punched to %s: %s", peer_id, error or "no answer")
        finally:
            self._beginning.remove(peer_id)
            self._host.changes.notify()

    async def _follow(self, connection: Connection) -> None:
        """Wait while the peer begins attempts, if it can connect to any address of this node."""
        peer_id = connection.peer_id
        if not punchable(self._own_addresses(), self._host.excluded):
            return
        with trio.CancelScope(deadline=trio.current_time() + NEXT_S) as following:
            self._following[connection] = following
            await self._host.changes.until(lambda: self._host.has_direct(peer_id) or self._failures.wait_s(peer_id) > 0)

    async def _reverse(self, peer_id: str) -> None:
        """Dial the addresses that a peer announces, if it announces any that lead to it directly."""
        with trio.move_on_after(IDENTIFY_S):
            await self._host.changes.until(lambda: bool(self._addresses_of(peer_id)))
        direct = [address for address in self._addresses_of(peer_id) if address.relay is None]
        if direct and self._reversals.wait_s(peer_id) <= 0:
            self._reversals.add(peer_id)
            with trio.move_on_after(REVERSAL_S):
                await self._host.dial_peer(peer_id, direct, directly=True)
            if self._host.has_direct(peer_id):
                self._reversals.remove(peer_id)

    async def _attempt(self, connection: Connection) -> None:
        """Exchange addresses with a peer, and dial each other at the same time. RemoteRefused if it cannot."""
        with trio.fail_after(EXCHANGE_TIMEOUT_S):
            stream = await connection.open([DCUTR])
            try:
                await send(stream, HolePunch(type=CONNECT, ObsAddrs=self._own()))
                asked = trio.current_time()
                theirs = await receive_addresses(stream, CONNECT, self._host.excluded)
                round_trip_s = trio.current_time() - asked
                await send(stream, HolePunch(type=SYNC))
                await stream.send_eof()
            except BaseException:
                stream.reset()
                raise
        await trio.sleep(round_trip_s / 2)  # the peer dials when it has read SYNC
        await self._dial(connection.peer_id, theirs, is_initiator=False)

    async def _answer(self, connection: Connection, stream: Stream) -> None:
        peer_id = connection.peer_id
        if not connection.relayed or self._host.has_direct(peer_id):
            raise RemoteRefused(f"{peer_id} asks for hole punching, but is connected directly")
        if self._failures.wait_s(peer_id) > 0:
            raise RemoteRefused(f"{peer_id} asks for hole punching too often")
        if peer_id in self._beginning and self._host.peer_id > peer_id:  # both begin, and one of them must yield
            raise RemoteRefused(f"{peer_id} asks for hole punching, and so does this node")
        with trio.fail_after(EXCHANGE_TIMEOUT_S):
            theirs = await receive_addresses(stream, CONNECT, self._host.excluded)
            await send(stream, HolePunch(type=CONNECT, ObsAddrs=self._own()))
            await receive_addresses(stream, SYNC, self._host.excluded)
        await self._dial(peer_id, theirs, is_initiator=True)
        if following := self._following.get(connection):
            following.deadline = trio.current_time() + NEXT_S

    def _own(self) -> list[bytes]:
        own = punchable(self._own_addresses(), self._host.excluded)
        if not own:
            raise RemoteRefused("no gateway has observed an address of this node yet")
        return [address.to_bytes() for address in own]

    async def _dial(self, peer_id: str, theirs: Sequence[Address], *, is_initiator: bool) -> None:
        """Dial all addresses of a peer for a limited time, until there is a direct connection."""

        async def punch(address: Address) -> None:
            with suppress(NetworkError):
                await self._host.punch(address.of(peer_id), is_initiator=is_initiator)

        async def dial(address: Address) -> None:
            with suppress(NetworkError):
                await self._host.dial(address.of(peer_id))

        if self._failures.wait_s(peer_id) > 0:  # the peer may have exchanged addresses on many streams at once
            raise RemoteRefused(f"{peer_id} asks for hole punching too often")
        if len(self._dials) >= MAX_AT_ONCE:
            raise RemoteRefused(f"this node punches holes to {MAX_AT_ONCE} peers already")
        self._failures.add(peer_id)  # and removed if this succeeds, so that a peer cannot begin many attempts at once
        if earlier := self._dials.get(peer_id):
            earlier.cancel()
        with trio.move_on_after(ATTEMPT_S) as attempt:
            self._dials[peer_id] = attempt
            try:
                async with trio.open_nursery() as nursery:
                    for address in theirs:
                        nursery.start_soon(punch, address)
                        if not is_initiator and address.transport is TransportName.TCP:
                            # A peer that accepts connections there is no initiator either.
                            nursery.start_soon(dial, address)
                    await self._host.changes.until(lambda: self._host.has_direct(peer_id))
                    nursery.cancel_scope.cancel()
            finally:
                if self._dials[peer_id] is attempt:
                    del self._dials[peer_id]
        if self._host.has_direct(peer_id):
            self._failures.remove(peer_id)
            _punch_log.info(peer_id, "punched a hole: connected directly in place of a relay")
        else:
            _punch_log.info(peer_id, "punched no hole to any of %s", ", ".join(map(str, theirs)))
        self._host.changes.notify()


def punchable(known: Iterable[Address], excluded: Sequence[Network]) -> list[Address]:
    """Return the IP addresses, at most `MAX_ADDRESSES`, that a node may be asked to dial from its listening port."""
    usable = (
        address.endpoint
        for address in known
        if address.relay is None and address.ip is not None and not addresses.excluded(address, excluded)
    )
    return list(dict.fromkeys(usable))[:MAX_ADDRESSES]


async def receive_addresses(
    stream: Stream, kind: "HolePunch.Type.ValueType", excluded: Sequence[Network]
) -> list[Address]:
    """Read a message; return its addresses that this node may dial.

    RemoteRefused if it is malformed or of another kind, or if CONNECT names no such address.
    """
    message = await receive(stream, HolePunch)
    if message.type != kind:
        raise RemoteRefused(f"expected the message {kind} of DCUtR, the peer sent {message.type}")
    theirs = punchable(addresses.usable(message.ObsAddrs), excluded)
    if kind == CONNECT and not theirs:
        raise RemoteRefused("the peer named no address that this node may dial")
    return theirs
