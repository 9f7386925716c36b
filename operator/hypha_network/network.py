"""The interface of this package: peers by id, requests, streams, gossip and records, without any type of libp2p."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TypeVar

import trio

from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_contracts.reach import Reach
from hypha_messages.protocol import Protocol, Request, Response
from hypha_messages.types import peer_id_to_bytes
from hypha_network.connection import Connection
from hypha_network.dialling import Found
from hypha_network.errors import NetworkError
from hypha_network.failures import only
from hypha_network.host import Host
from hypha_network.identity import Identity
from hypha_network.services.bulk_circuits import BulkCircuits
from hypha_network.services.discovery import Discovery
from hypha_network.services.gateways import Gateways
from hypha_network.services.gossip import PROTOCOLS as GOSSIP
from hypha_network.services.gossip import PubSub
from hypha_network.services.gossip_intake import Hears, hears_all
from hypha_network.services.gossip_messages import Gossip, Message, Signer
from hypha_network.services.hole_punching import HolePuncher
from hypha_network.services.identify import IDENTIFY, PING, PUSH, Identify, answer_pings, ping_until_silent
from hypha_network.services.kademlia import PROTOCOL as KADEMLIA
from hypha_network.services.kademlia import Kademlia
from hypha_network.services.kademlia_messages import Record
from hypha_network.services.observed import Observed
from hypha_network.services.reach import ReachWatch, judge
from hypha_network.services.relay import Relays
from hypha_network.services.relay_server import BulkLimits, RelayServer
from hypha_network.services.requests import REQUEST_TIMEOUT_S, Handler, Requests
from hypha_network.services.source_prover import SourceProver
from hypha_network.status import ConnectionStatus, NetworkStatus
from hypha_network.traffic import Direction, PeerCounts
from hypha_network.wire import addresses
from hypha_network.wire.addresses import Address, AddressError
from hypha_network.wire.dnsaddr import NamedGateway, parse_gateway
from hypha_network.wire.processor import share_processor
from hypha_network.wire.streams import Stream
from hypha_network.wire.tls import TlsTransport, keep_valid
from hypha_network.wire.upgrade import Upgrader

logger = logging.getLogger(__name__)

Parsed = TypeVar("Parsed")
MAX_STREAMS_PER_PEER = 64
_ASK_GATEWAYS_S = 1.0
_GUESS_AFTER_S = 2.0
"""How long a lookup may take before the node tries whether the gateways relay to the peer."""


@dataclass(frozen=True)
class NetworkConfig:
    """The settings of a node. Addresses are multiaddresses as text.

    Attributes:
        gateways: addresses of gateways, with or without `/p2p/<id>`. The node is healthy only while it reaches one.
        listen_addresses: addresses to accept connections at; port 0 lets the system choose.
        external_addresses: addresses at which peers reach this node, if not at its listen addresses.
        exclude_cidr: networks in which this node dials no address that peers announce, even if a name resolves to it.
        relay_circuit: reserve a slot on every gateway, so that peers reach this node through them.
        kademlia_server: answer other nodes' lookups and store their records, as gateways do. A node with external
            addresses does so in any case, and one with `relay_circuit` while peers can connect to it directly.
        relay_server: relay connections between other nodes, as gateways do.
        relay_bulk: with `relay_server`, relay bulk data too, at limited rates.
    """

    gateways: tuple[str, ...] = ()
    listen_addresses: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    external_addresses: tuple[str, ...] = ()
    exclude_cidr: tuple[str, ...] = RESERVED_CIDRS
    relay_circuit: bool = False
    kademlia_server: bool = False
    relay_server: bool = False
    relay_bulk: BulkLimits | None = None


class Network:
    """A node's access to the network. Use `open_network` to make one."""

    def __init__(self, identity: Identity, config: NetworkConfig, host: Host) -> None:
        self.peer_id = identity.peer_id
        self._config = config
        self._host = host
        self._external = _parse_all(config.external_addresses, addresses.parse_supported)
        gateways: list[Address | NamedGateway] = _parse_all(config.gateways, parse_gateway)
        host.excluded = addresses.parse_cidrs(config.exclude_cidr)
        host.background.update((IDENTIFY, PUSH, PING, KADEMLIA, *GOSSIP))
        host.configured.update(address.endpoint for address in gateways if isinstance(address, Address))
        if config.gateways and not gateways:
            raise NetworkError("none of the gateway addresses is usable; add one, as in /ip4/192.0.2.1/tcp/4001")
        public_key = peer_id_to_bytes(identity.peer_id)[2:]  # after the multihash header, an Ed25519 peer id is its key
        agent = f"hypha-worker/{version('hypha-worker')}"
        self._requests = Requests(host)
        self._gateways = Gateways(host, gateways, self._on_gateway)
        self._pubsub = PubSub(host, Signer(identity.seed, identity.peer_id), SourceProver(host, self._ask_gateways))
        self._kademlia = Kademlia(
            host, lambda address: not addresses.excluded(address, host.excluded), self._gateways.peer_ids
        )
        self._identify = Identify(host, public_key, agent, self._addresses_for, self._kademlia.learn)
        self._discovery = Discovery(host, self._ask_gateway, self._silent_gateways, self._identify.push)
        self._relays = Relays(host, self._identify.push)
        self._observed = Observed(host, self._gateways.peer_ids)
        self._puncher = HolePuncher(host, self._direct_addresses, self._kademlia.addresses_of)
        host.register(self._pubsub.handlers, self._pubsub.serve)
        host.register(self._identify.handlers, self._identify.serve)
        host.register({PING: answer_pings}, ping_until_silent)
        host.register(self._relays.handlers, self._relays.close_once_unused)
        host.register(self._puncher.handlers, self._puncher.replace_relayed)
        self._reach = ReachWatch(host.changes, self._judge_reach, self._on_reach)
        self._serves_dht = config.kademlia_server or bool(self._external)
        self._kademlia.serve(self._serves_dht)
        if config.relay_server:
            host.register(RelayServer(host, self._own_addresses, config.relay_bulk).handlers)
        host.find_addresses = self._find_addresses
        host.dial_relayed = self._relays.dial
        host.punched = self._puncher.wait
        host.connect_bulk = BulkCircuits(host, self._relays).connect

    async def _run(self) -> None:
        for address in _parse_all(self._config.listen_addresses, addresses.parse_supported):
            if address.relay is not None:
                raise NetworkError(f"cannot listen on {address}; set relay_circuit to be reached through the gateways")
            await self._host.listen(address)
        for listening in self._host.listen_addresses:
            logger.info("listening on %s", listening.of(self.peer_id))
        nursery = self._host.nursery
        nursery.start_soon(self._pubsub.run)
        nursery.start_soon(self._gateways.run)
        nursery.start_soon(self._kademlia.run)
        nursery.start_soon(self._discovery.run)
        nursery.start_soon(self._reach.run)
        nursery.start_soon(keep_valid, self._host.upgrader.tls)

    @property
    def identity(self) -> Identity:
        """The node's identity. It is replaced when its files change."""
        return self._host.upgrader.tls.identity

    @property
    def identity_problem(self) -> str | None:
        """Why the identity in the files is not in use; None if it is in use."""
        return self._host.upgrader.tls.problem

    def addresses(self) -> list[str]:
        """Return the multiaddresses, with its peer id, at which peers reach this node."""
        return [str(address.of(self.peer_id)) for address in self._own_addresses()]

    def _own_addresses(self) -> list[Address]:
        return [*self._host.listen_addresses, *self._external, *self._relays.own_addresses()]

    def _addresses_for(self, peer_id: str) -> list[Address]:
        hidden = self._discovery.hides(peer_id)
        return [address for address in self._own_addresses() if not hidden or address.relay is None]

    def _direct_addresses(self) -> list[Address]:
        """Return the addresses to which a peer may connect while this node connects to it."""
        return [*self._external, *self._observed.addresses(), *self._host.listen_addresses]

    def status(self) -> NetworkStatus:
        """Return the node's state. It is healthy once it listens, has joined and can be reached.

        Without external addresses, a node with `relay_circuit` counts as reachable while it holds a relay slot.
        """
        listening = tuple(map(str, self._host.listen_addresses))
        gateways = self._gateways.peer_ids()
        reservations = tuple(self._relays.reservations)
        bootstrapped = self._kademlia.bootstrapped.is_set()
        reachable = bool(reservations) or bool(self._external) or not self._config.relay_circuit
        joined = (bool(gateways) and bootstrapped and reachable) or not self._config.gateways
        listens = bool(listening) or not self._config.listen_addresses
        return NetworkStatus(listening, gateways, reservations, bootstrapped, listens and joined, self.reach)

    @property
    def reach(self) -> Reach | None:
        """How peers reach this node; None as long as no gateway has observed it. A worse reach counts once it lasts."""
        return self._reach.current

    def _judge_reach(self) -> Reach | None:
        named = any(not addresses.excluded(address, self._host.excluded) for address in self._external)
        return judge(
            # A node without gateways is one itself.
            public=named or not self._config.gateways or bool(self._observed.open_addresses()),
            observed=self._observed.known,
            predictable=self._observed.predictable(),
            reserved=bool(self._relays.reservations),
            relays_bulk=self._relays.bulk,
        )

    async def _on_reach(self, reach: Reach | None) -> None:
        """Serve the DHT while peers connect directly. Nothing shows a change while no gateway observes the node."""
        follows = self._config.relay_circuit and not self._serves_dht
        if follows and reach is not None and self._kademlia.serve(reach is Reach.PUBLIC):
            await self._identify.push()

    async def wait_ready(self) -> None:
        """Wait until the node is healthy, without a time limit: the node dials its gateways until one answers."""
        await self.wait_until(lambda: self.status().healthy)

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on this node's connections, subscribers or status holds."""
        await self._host.changes.until(condition)

    def connected_peers(self) -> list[str]:
        """Return the peers that this node is connected with."""
        return list(self._host.connections)

    def connections(self) -> list[ConnectionStatus]:
        """Return the state of each connection."""
        return [
            ConnectionStatus(
                peer_id,
                connection.inbound,
                connection.relayed,
                connection.address.transport,
                connection.muxed.latest_rtt_s,
                connection.muxed.received_bytes,
                connection.muxed.sent_bytes,
            )
            for peer_id, connections in self._host.connections.items()
            for connection in connections
        ]

    def traffic(self) -> PeerCounts[Direction]:
        """Return the bytes received from peers and sent to them, within TLS, since the network was opened."""
        self._host.count_traffic()
        return self._host.traffic

    async def dial(self, address: str) -> str:
        """Connect to an address that the operator chose, and return the peer there.

        Raises:
            DialError: connecting failed.
            NetworkError: the address is malformed.
        """
        try:
            parsed = addresses.parse(address)
        except AddressError as error:
            raise NetworkError(str(error)) from error
        self._host.configured.add(parsed.endpoint)
        return (await self._host.dial(parsed)).peer_id

    def handle(self, protocol: Protocol[Request, Response], handler: Handler[Request, Response]) -> None:
        """Answer requests of a protocol with `await handler(peer_id, request)`; None refuses the request."""
        self._host.register({protocol.id: self._requests.stream_handler(protocol, handler)})

    async def request(
        self,
        peer_id: str,
        protocol: Protocol[Request, Response],
        message: Request,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Response:
        """Send a request to a peer and return its response.

        Raises:
            PeerUnreachable: there is no connection, and none can be made.
            RemoteRefused: the peer does not speak the protocol, or its response is malformed.
            RequestTimeout: there was no response within `timeout_s`.
            StreamReset: the peer reset the stream, or the connection ended.
        """
        return await self._requests.request(peer_id, protocol, message, timeout_s)

    def subscribe(
        self,
        topic: str,
        decode: Callable[[bytes], Message],
        limit: int = 1024,
        proved_per_s: float | None = None,
        hears: Hears = hears_all,
    ) -> trio.MemoryReceiveChannel[Gossip[Message]]:
        """Receive the messages that other peers publish on a topic.

        Args:
            topic: the topic.
            decode: raises ValueError for a message that must be neither delivered nor forwarded.
            limit: how many messages may wait unread; more are dropped.
            proved_per_s: hear only sources that a certificate has proved within the last hour, and at most this many
                messages of each per second. Messages of another source wait until the node has connected to it.
            hears: with `proved_per_s`, whether a source is heard at all. It is called before anything is verified, so a
                source that is not heard costs little. Its messages are not forwarded either.
        """
        return self._pubsub.subscribe(topic, decode, limit, proved_per_s, hears)

    def favour(self, peer_id: str) -> None:
        """Let a peer that did useful work go first for an hour when many peers want to be served."""
        self._host.favour(peer_id)

    async def publish(self, topic: str, data: bytes) -> None:
        """Publish a message. NetworkError if the topic has no subscribers, or the message exceeds 64 KiB."""
        await trio.lowlevel.checkpoint()
        self._pubsub.publish(topic, data)

    def subscribers(self, topic: str) -> list[str]:
        """Return the connected peers that subscribe to a topic."""
        return self._pubsub.peers(topic)

    def mesh(self, topic: str) -> list[str]:
        """Return the peers that send every message of a subscribed topic to this node."""
        return self._pubsub.mesh(topic)

    def handle_stream(self, protocol: str, handler: Callable[[str, Stream], Awaitable[None]]) -> None:
        """Serve streams of a protocol with `await handler(peer_id, stream)`, then close the stream."""
        open_streams: dict[str, int] = {}

        async def serve(connection: Connection, stream: Stream) -> None:
            peer_id = connection.peer_id
            if open_streams.get(peer_id, 0) >= MAX_STREAMS_PER_PEER:
                raise NetworkError(f"the peer has {MAX_STREAMS_PER_PEER} streams of {protocol} open already")
            open_streams[peer_id] = open_streams.get(peer_id, 0) + 1
            try:
                await handler(peer_id, stream)
            finally:
                open_streams[peer_id] -= 1
                if not open_streams[peer_id]:
                    del open_streams[peer_id]

        self._host.register({protocol: serve})

    async def open_stream(self, peer_id: str, protocol: str) -> Stream:
        """Open a stream to a peer; PeerUnreachable, RemoteRefused or StreamReset if that fails."""
        return await self._host.open_stream(peer_id, [protocol], bulk=True)

    async def put_record(self, key: str, value: bytes) -> None:
        """Publish a record of this node, and republish it before it expires for as long as the network is open."""
        await self._kademlia.put(key.encode(), value)

    async def get_record(self, key: str) -> Record | None:
        """Look a record up; None if no peer has it."""
        return await self._kademlia.get(key.encode())

    async def _find_addresses(self, peer_id: str, found: Found) -> None:
        """Pass the known addresses of a peer on, then those that a lookup finds, and at last those behind gateways."""

        async def guess(after_s: float) -> None:
            await trio.sleep(after_s)
            found(self._gateways.behind(peer_id))

        found(self._kademlia.addresses_of(peer_id))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(guess, _GUESS_AFTER_S)
            await self._kademlia.find_peer(peer_id, found)
            nursery.cancel_scope.cancel()
        await guess(0)

    async def _ask_gateways(self, peer_id: str) -> dict[str, tuple[Address, ...]]:
        """Ask the gateways about a peer; return the peers that they name. They know only peers with certificates."""
        return await self._kademlia.ask(set(self._gateways.peer_ids()), peer_id_to_bytes(peer_id), _ASK_GATEWAYS_S)

    async def _ask_gateway(self, peer_id: str, key: bytes) -> dict[str, tuple[Address, ...]]:
        return await self._kademlia.ask([peer_id], key, _ASK_GATEWAYS_S)

    def _silent_gateways(self) -> list[str]:
        return self._pubsub.silent(self._gateways.peer_ids())

    async def _on_gateway(self, connection: Connection) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kademlia.republish)
            if self._config.relay_circuit:
                nursery.start_soon(self._relays.keep_reserved, connection)


def _parse_all(texts: tuple[str, ...], parse: Callable[[str], Parsed | None]) -> list[Parsed]:
    """Parse configured addresses. Leave those of unsupported transports out, with a warning."""
    parsed = []
    for text in texts:
        if (address := parse(text)) is None:
            logger.warning("%s is left out: this node has only TCP and QUIC (/udp/PORT/quic-v1)", text)
        else:
            parsed.append(address)
    return parsed


@asynccontextmanager
async def open_network(identity: Identity, config: NetworkConfig) -> AsyncIterator[Network]:
    """Join the network. The context begins once the node listens, and leaving it closes every connection.

    Raises:
        AddressError: a configured address or network is malformed.
        NetworkError: the node cannot listen, or no gateway address is usable.
    """
    failure: BaseException | None = None
    share_processor()
    try:
        async with trio.open_nursery() as nursery:
            network = Network(identity, config, Host(identity.peer_id, Upgrader(TlsTransport(identity)), nursery))
            await network._run()
            try:
                yield network
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = only(group)
    if failure is not None:
        raise failure
