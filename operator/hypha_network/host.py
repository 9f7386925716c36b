"""The connections of a node: accepts, dials, secures and muxes them, and passes their streams to handlers."""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from hypha_contracts import descriptors
from hypha_network.changes import Changes
from hypha_network.connection import Connection, best_of, silent_longest
from hypha_network.dialling import Found, dial_until
from hypha_network.errors import DialError, NetworkError, OnlyRelayed, PeerUnreachable, RemoteRefused
from hypha_network.failures import report_failure
from hypha_network.inbound_streams import InboundStreams, StreamHandler
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.recent_peers import RecentPeers
from hypha_network.traffic import Direction, PeerCounts
from hypha_network.wire.addresses import Address, Network, TransportName, expand, source_of
from hypha_network.wire.muxer import Muxed
from hypha_network.wire.processor import charged_to
from hypha_network.wire.streams import Stream
from hypha_network.wire.transport import Link, Transport
from hypha_network.wire.transports import transports
from hypha_network.wire.upgrade import Upgrader

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)
_connect_log = RateLimitedLogger(logger)
_disconnect_log = RateLimitedLogger(logger)

MAX_CONNECTIONS = 1024
"""Maximum number of connections. At the limit, a new one replaces one of the peer that has most."""
MAX_CLOSING_CONNECTIONS = 16
MAX_CONNECTIONS_PER_PEER = 8
DIRECT_TIMEOUT_S = 3.0
TRY_S = 3.0
"""How long to wait until a connection opens a stream, while the peer has other connections to try."""
REFUSED_S = 300.0
"""How long this node refuses connections of a peer that attacked it."""
PROVED_S = 3600.0
"""How long a connection proves that a peer has a certificate."""
STAY_RELAYED_S = 60.0
"""After a failed attempt to replace a relayed connection with a direct one, how long to wait before the next."""
_CLOSE_TIMEOUT_S = 2.0


ConnectionTask = Callable[[Connection], Awaitable[None]]
Finder = Callable[[str, Found], Awaitable[None]]
RelayDialer = Callable[[Address], Awaitable[Link]]
PeerTask = Callable[[str], Awaitable[None]]


@dataclass(eq=False)
class Host:
    """The connections of a node, and the protocols that it serves on them."""

    peer_id: str
    upgrader: Upgrader
    nursery: trio.Nursery
    connections: dict[str, list[Connection]] = field(default_factory=dict)
    listen_addresses: list[Address] = field(default_factory=list)
    bound: list[Address] = field(default_factory=list)
    """The listen addresses as they are bound, among them 0.0.0.0, which stands for several."""
    find_addresses: Finder | None = None
    dial_relayed: RelayDialer | None = None
    punched: PeerTask | None = None
    """Waits a limited time until no hole is being punched to a peer."""
    connect_bulk: PeerTask | None = None
    """Connects to a peer through a relay that carries bulk data, if any leads to it."""
    changes: Changes = field(default_factory=Changes)
    """Notified whenever a connection comes or goes, a peer subscribes, or the node's status changes."""
    excluded: Sequence[Network] = ()
    """Networks in which this node connects to no address, unless the operator configured the address."""
    background: set[str] = field(default_factory=set)
    """Protocols whose streams do not keep a connection in use."""
    configured: set[Address] = field(default_factory=set)
    """The endpoints that the operator configured."""
    traffic: PeerCounts[Direction] = field(default_factory=PeerCounts)
    """The bytes of all connections until `count_traffic` was called last."""
    _handlers: dict[str, StreamHandler] = field(default_factory=dict)
    _connection_tasks: list[ConnectionTask] = field(default_factory=list)
    _proved: RecentPeers = field(default_factory=lambda: RecentPeers(PROVED_S))
    _dialling: dict[str, trio.Lock] = field(default_factory=dict)
    _stay_relayed: dict[str, float] = field(default_factory=dict)
    """By peer, the time before which this node does not try to replace the relayed connection."""
    _refused: RecentPeers = field(default_factory=lambda: RecentPeers(REFUSED_S))
    _max_connections: int = field(default_factory=lambda: min(MAX_CONNECTIONS, descriptors.limit() // 4))
    """Most descriptors stay for other uses."""
    _running: int = 0
    """The number of connections, with those that are closing."""
    _transports: Mapping[TransportName, Transport] = field(init=False)

    def __post_init__(self) -> None:
        self._transports = transports(self.nursery)
        self._inbound = InboundStreams(self.connections, self._handlers, self.background)

    def register(self, handlers: Mapping[str, StreamHandler], on_connection: ConnectionTask | None = None) -> None:
        """Serve protocols from now on. With `on_connection`, call this before the first connection.

        Args:
            handlers: by protocol, the function that serves an inbound stream.
            on_connection: runs on every new connection, beside the handlers of its streams.

        Raises:
            ValueError: a protocol has a handler already.
        """
        for protocol, handler in handlers.items():
            if protocol in self._handlers:
                raise ValueError(f"protocol {protocol} has a handler already; register it once")
            self._handlers[protocol] = handler
        if on_connection is not None:
            self._connection_tasks.append(on_connection)

    def unregister(self, protocols: Iterable[str]) -> None:
        """Serve no more streams of these protocols. Those that are open go on."""
        for protocol in protocols:
            del self._handlers[protocol]

    @property
    def protocols(self) -> list[str]:
        """The protocols that this node serves."""
        return sorted(self._handlers)

    async def listen(self, address: Address) -> None:
        """Listen on an address; NetworkError if listening is impossible."""
        transport, make_room = self._transports[address.transport], self.upgrader.unauthenticated.make_room
        for bound in await transport.listen(address, self._accept, make_room, self.nursery):
            self.bound.append(bound)
            self.listen_addresses += [entry for entry in expand(bound) if entry not in self.listen_addresses]

    async def _accept(self, link: Link) -> None:
        try:
            connection = await self.upgrade(link, None)
        except NetworkError as error:
            _refusal_log.info(source_of(link.address), "the connection from %s failed: %s", link.address, error)
        else:
            await connection.closed.wait()  # the transport closes the connection once this returns

    async def upgrade(self, link: Link, expected: str | None) -> Connection:
        """Secure and mux a connection and serve it; see `Upgrader.upgrade`."""
        muxed = await self.upgrader.upgrade(link, expected)
        try:
            self._make_room(muxed.peer_id, inbound=not link.is_initiator)
        except DialError:
            await muxed.close()
            raise
        connection: Connection = await self.nursery.start(self._run, muxed, link)
        return connection

    def _make_room(self, peer_id: str, *, inbound: bool) -> None:
        """Close a connection if there are too many; DialError if the peer may not have another one."""
        if peer_id == self.peer_id:
            raise DialError("the peer is this node itself")
        if peer_id in self._refused:
            raise DialError(f"{peer_id} attacked this node recently")
        own = self.connections.get(peer_id, [])
        if inbound and self._running >= self._max_connections:
            most = max(self.connections.values(), key=len, default=[])
            if len(most) <= len(own) + 1 or self._running >= self._max_connections + MAX_CLOSING_CONNECTIONS:
                raise DialError(f"this node has {self._running} connections already")
            silent_longest(most).close()
        elif len(own) >= MAX_CONNECTIONS_PER_PEER:
            silent_longest(own).close()  # the peer has most likely lost it

    def favour(self, peer_id: str) -> None:
        """Let a peer that did useful work go first for an hour when many peers want to be served."""
        self.upgrader.cpu_share(peer_id).favour()

    def refuse(self, peer_id: str) -> None:
        """Close the connections with a peer that attacks this node, and refuse new ones for a while."""
        self._refused.add(peer_id)
        for connection in self.connections.get(peer_id, []):
            connection.close()

    async def _run(self, muxed: Muxed, link: Link, task_status: Any) -> None:
        self._running += 1
        try:
            with charged_to(muxed.cpu_share):
                await self._serve_connection(muxed, link, task_status)
        except Exception as error:
            report_failure(muxed.peer_id, "the connection", error)
        finally:
            self._running -= 1

    async def _serve_connection(self, muxed: Muxed, link: Link, task_status: Any) -> None:
        try:
            async with trio.open_nursery() as nursery:
                connection = Connection(
                    muxed.peer_id, muxed, link.address, not link.is_initiator, nursery, link.limited, link.local_port
                )
                nursery.start_soon(self._run_muxer, connection)
                await muxed.event_started.wait()
                self._add(connection)
                try:
                    for task in self._connection_tasks:
                        nursery.start_soon(self.run_task, task, connection)
                    task_status.started(connection)
                    await self._inbound.serve(connection)
                finally:
                    self._remove(connection)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + _CLOSE_TIMEOUT_S, shield=True):
                await muxed.close()

    async def _run_muxer(self, connection: Connection) -> None:
        await connection.muxed.start()
        connection.close()

    async def run_task(self, task: ConnectionTask, connection: Connection) -> None:
        """Run a task on a connection. Its failure is logged and ends neither the connection nor other tasks."""
        try:
            await task(connection)
        except Exception as error:
            report_failure(connection.peer_id, getattr(task, "__qualname__", "a task"), error)

    def _add(self, connection: Connection) -> None:
        for older in self.connections.setdefault(connection.peer_id, []):
            older.nursery.start_soon(self.run_task, Connection.close_if_silent, older)
        self.connections[connection.peer_id].append(connection)
        direction = "from" if connection.inbound else "to"
        _connect_log.info(connection.peer_id, "connected %s %s", direction, connection.address)
        self.changes.notify()

    def proved(self, peer_id: str) -> bool:
        """Whether a peer has proved its certificate in a connection within the last hour."""
        return peer_id in self.connections or peer_id in self._proved

    def count_traffic(self) -> None:
        """Bring `traffic` up to date."""
        for connections in self.connections.values():
            for connection in connections:
                self._count_traffic_of(connection)

    def _count_traffic_of(self, connection: Connection) -> None:
        received, sent = connection.take_traffic()
        if received or sent:
            self.traffic.add(connection.peer_id, received + sent, {"inbound": received, "outbound": sent})

    def _remove(self, connection: Connection) -> None:
        self._count_traffic_of(connection)
        self._proved.add(connection.peer_id)
        remaining = self.connections[connection.peer_id]
        remaining.remove(connection)
        connection.closed.set()
        if not remaining:
            del self.connections[connection.peer_id]
            self._stay_relayed.pop(connection.peer_id, None)
            _disconnect_log.info(connection.peer_id, "disconnected")
        self.changes.notify()

    def connection(self, peer_id: str) -> Connection | None:
        """Return the best connection to a peer: a direct one if there is any, and then the one heard from last."""
        return best_of(self.connections.get(peer_id, ()))

    def has_direct(self, peer_id: str) -> bool:
        """Whether there is a direct connection to a peer."""
        best = self.connection(peer_id)
        return best is not None and not best.relayed

    async def dial(self, address: Address, *, configured: bool = False) -> Connection:
        """Connect to an address; DialError if that fails.

        Args:
            address: the address. Without a peer id, it may lead to any peer.
            configured: the operator chose it, although it is not in `configured`.
        """
        if address.relay is not None:
            if self.dial_relayed is None:
                raise DialError(f"{address}: this node uses no relays")
            link = await self.dial_relayed(address)
        else:
            configured = configured or address.endpoint in self.configured
            listening = self.bound if configured and address.endpoint not in self.listen_addresses else ()
            excluded = () if configured else self.excluded
            link = await self._transports[address.transport].connect(address, excluded, listening)
        return await self.upgrade(link, address.peer_id)

    async def punch(self, address: Address, *, is_initiator: bool) -> Connection:
        """Connect to the IP address of a peer that does the same; DialError. One side is the initiator."""
        if address.endpoint in self.listen_addresses:
            raise DialError(f"{address} is an address of this node")
        link = await self._transports[address.transport].punch(address, self.bound, is_initiator=is_initiator)
        return await self.upgrade(link, address.peer_id)

    async def connect(
        self, peer_id: str, hints: Collection[Address] | None = None, *, bulk: bool = False
    ) -> Connection:
        """Return a connection to a peer, dialling if there is none. PeerUnreachable if no address leads to it.

        Args:
            peer_id: the peer.
            hints: addresses to try; with None, the node tries those that it knows, and looks others up meanwhile.
            bulk: try to replace a relayed connection, by a direct one or at last through a relay that carries bulk
                data; OnlyRelayed if only a limited relay leads to the peer.
        """
        if peer_id == self.peer_id:
            raise PeerUnreachable("a node has no connection to itself")
        connection = await self._connect(peer_id, hints, bulk=bulk)
        if bulk and connection.relayed and self.punched is not None:
            await self._connect(peer_id, hints, bulk=bulk)  # directly, unless that has just failed
            await self.punched(peer_id)
            connection = self.connection(peer_id) or connection
        if bulk and connection.limited and self.connect_bulk is not None:
            await self.connect_bulk(peer_id)
            connection = self.connection(peer_id) or connection
        if bulk and connection.limited:
            raise OnlyRelayed(
                f"only the relay {connection.address.relay} leads to {peer_id}, and it limits bytes and time, so no "
                "bulk data is sent over it. Open a port of one of the two nodes (docs/networking.md)"
            )
        return connection

    async def _connect(self, peer_id: str, hints: Collection[Address] | None, *, bulk: bool) -> Connection:
        if existing := self._good_enough(peer_id, bulk=bulk):
            return existing
        lock = self._dialling.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                if existing := self._good_enough(peer_id, bulk=bulk):
                    return existing
                if self.connection(peer_id):
                    return await self._go_direct(peer_id, hints)
                reasons = await self.dial_peer(peer_id, hints)
                if existing := self.connection(peer_id):
                    return existing
                raise PeerUnreachable(f"cannot reach {peer_id}: {'; '.join(reasons) or 'no address is known'}")
        finally:
            if not lock.locked() and self._dialling.get(peer_id) is lock:
                del self._dialling[peer_id]

    def _good_enough(self, peer_id: str, *, bulk: bool) -> Connection | None:
        existing = self.connection(peer_id)
        if existing and existing.relayed and bulk and self._stay_relayed.get(peer_id, 0) < trio.current_time():
            return None
        return existing

    async def _go_direct(self, peer_id: str, hints: Collection[Address] | None) -> Connection:
        """Dial directly for a short time; return the best connection, which is the relayed one if dialling fails."""
        with trio.move_on_after(DIRECT_TIMEOUT_S):
            await self.dial_peer(peer_id, hints, directly=True)
        if (best := self.connection(peer_id)) is None:
            raise PeerUnreachable(f"the relayed connection with {peer_id} ended, and there is no direct one")
        if best.relayed:
            self._stay_relayed[peer_id] = trio.current_time() + STAY_RELAYED_S
        return best

    async def dial_peer(self, peer_id: str, hints: Collection[Address] | None, *, directly: bool = False) -> list[str]:
        """Dial a peer until there is a connection, which it may have made itself; return why dialling failed."""

        async def find(found: Found) -> None:
            def pass_on(addresses: Iterable[Address]) -> None:
                found(address.of(peer_id) for address in addresses if address.relay is None or not directly)

            if hints is not None:
                pass_on(hints)
            elif self.find_addresses is not None:
                await self.find_addresses(peer_id, pass_on)

        connected = (lambda: self.has_direct(peer_id)) if directly else (lambda: peer_id in self.connections)
        return await dial_until(connected, self.changes, find, self.dial)

    async def open_stream(
        self,
        peer_id: str,
        protocols: list[str],
        hints: Collection[Address] | None = None,
        *,
        bulk: bool = False,
    ) -> Stream:
        """Open a stream to a peer, connecting to it first if there is no connection; see `connect`.

        If the best connection fails or is slow, the peer's other ones are tried.
        """
        connection = await self.connect(peer_id, hints, bulk=bulk)
        tried: list[Connection] = []

        def others() -> list[Connection]:
            usable = (other for other in self.connections.get(peer_id, ()) if not (bulk and other.limited))
            return [other for other in usable if other not in tried]

        while True:
            tried.append(connection)
            try:
                return await self._open_on(connection, protocols, TRY_S if others() else None)
            except RemoteRefused:
                raise
            except NetworkError:
                connection = best_of(others()) or await self.connect(peer_id, hints, bulk=bulk)  # it may have ended
                if connection in tried or len(tried) > MAX_CONNECTIONS_PER_PEER:
                    raise

    async def _open_on(self, connection: Connection, protocols: list[str], timeout_s: float | None) -> Stream:
        stream = await connection.open(protocols, timeout_s)
        if not self.background.issuperset(protocols):
            connection.use(stream)
        return stream
