"""gossipsub 1.1 with strict signing: keeps the mesh, forwards messages, and delivers them to subscribers."""

import logging
import random
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import trio
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.pubsub.pb import rpc_pb2

from hypha_network.connection import Connection
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.gossip_intake import Hears, Intake, hears_all
from hypha_network.services.gossip_mesh import PRUNE_BACKOFF_S, Mesh
from hypha_network.services.gossip_messages import Gossip, Message, MessageCache, Signer, message_id
from hypha_network.services.gossip_outbox import Outbox
from hypha_network.services.source_prover import SourceProver
from hypha_network.wire.multistream import read_prefixed
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)

PROTOCOLS = ["/meshsub/1.1.0", "/meshsub/1.0.0"]
D_LAZY = 6
HEARTBEAT_S = 1.0
MAX_RPC_BYTES = 64 * 1024
MAX_MESSAGES_PER_RPC = 512
"""More than fit, because a signed message has at least 120 bytes; smaller ones are forged."""
MAX_STREAMS_PER_PEER = 4
"""Maximum number of streams that a peer sends on; opening one more resets the oldest."""
MAX_TOPICS_PER_PEER = 128
MAX_TOPIC_LENGTH = 256
MAX_IHAVE_IDS = 5000
MAX_IHAVE_MESSAGES = 10
MAX_EMITTED_IDS = 500
"""This many ids fit into one RPC."""
MAX_RETRANSMISSIONS = 3
RETRY_S = 5.0
_WRITE_TIMEOUT_S = 10.0


@dataclass
class _Peer:
    connections: int = 0
    outbox: Outbox = field(default_factory=Outbox)
    inbound: list[Stream] = field(default_factory=list)
    """The streams that the peer sends on, oldest first."""
    topics: set[str] = field(default_factory=set)
    ihave_messages: int = 0
    ihave_ids: int = 0
    retransmissions: dict[bytes, int] = field(default_factory=dict)
    """By message id, the number of times that this node sent a cached message again on request."""


class PubSub:
    """The gossip of a node. The host runs `serve` on every connection, and the network runs `run` once."""

    def __init__(self, host: Host, signer: Signer, prover: SourceProver) -> None:
        self._host = host
        self._signer = signer
        self._intake = Intake(host, prover, self._accept)
        self._peers: dict[str, _Peer] = {}
        self._subscribers: dict[str, list[trio.MemorySendChannel[Gossip[Any]]]] = {}
        self._mesh = Mesh()
        self._cache = MessageCache()
        self.handlers: dict[str, StreamHandler] = dict.fromkeys(PROTOCOLS, self._receive)

    def peers(self, topic: str) -> list[str]:
        """Return the peers that have announced a subscription to a topic."""
        return [peer_id for peer_id, peer in self._peers.items() if topic in peer.topics]

    def silent(self, peer_ids: Iterable[str]) -> list[str]:
        """Return those of these peers that subscribe to none of this node's topics, and so forward nothing to it."""
        topics = self._subscribers.keys()
        return [peer_id for peer_id in peer_ids if topics and topics.isdisjoint(self._topics_of(peer_id))]

    def _topics_of(self, peer_id: str) -> Set[str]:
        peer = self._peers.get(peer_id)
        return peer.topics if peer else set()

    def mesh(self, topic: str) -> list[str]:
        """Return the peers that exchange the messages of a subscribed topic with this node."""
        return sorted(self._mesh.members(topic)) if topic in self._mesh else []

    def subscribe(
        self,
        topic: str,
        decode: Callable[[bytes], Message],
        limit: int,
        proved_per_s: float | None = None,
        hears: Hears = hears_all,
    ) -> trio.MemoryReceiveChannel[Gossip[Message]]:
        """Receive the messages that other peers publish on a topic; see `Network.subscribe`.

        All subscribers of a topic must pass the same `decode` function.
        """
        self._intake.hear(topic, decode, proved_per_s, hears)
        sender, receiver = trio.open_memory_channel[Gossip[Message]](limit)
        if topic not in self._subscribers:
            self._subscribers[topic] = []
            self._mesh.join(topic)
            self._announce(_subscription(topic))
            self._fill_mesh(topic)
        self._subscribers[topic].append(sender)
        return receiver

    def publish(self, topic: str, data: bytes) -> None:
        """Send a message to all subscribers. NetworkError if there are none, or the message is too large."""
        message = self._signer.sign(topic, data)
        rpc = rpc_pb2.RPC(publish=[message])
        if rpc.ByteSize() > MAX_RPC_BYTES:
            raise NetworkError(
                f"a gossip message of {len(data)} bytes is too large; the limit is {MAX_RPC_BYTES} with its envelope"
            )
        id_ = message_id(message)
        self._intake.seen.add(id_, time.monotonic())
        self._cache.put(id_, message)
        peers = self.peers(topic)
        if not peers:
            raise NetworkError(f"no connected peer subscribes to {topic}")
        for peer_id in peers:
            self._send(peer_id, rpc)

    async def serve(self, connection: Connection) -> None:
        """Send gossip to a peer for as long as the connection lasts."""
        peer = self._peers.setdefault(connection.peer_id, _Peer())
        peer.connections += 1
        try:
            while True:
                await self._send_on(connection, peer)
                await trio.sleep(RETRY_S)
        finally:
            peer.connections -= 1
            if not peer.connections:
                self._release(connection.peer_id)

    async def _send_on(self, connection: Connection, peer: _Peer) -> None:
        try:
            stream = await connection.open(PROTOCOLS)
            await self._send_queued(connection, peer.outbox, stream)
        except RemoteRefused:
            await trio.sleep_forever()
        except trio.TooSlowError:
            _refusal_log.warning(connection.peer_id, "does not read its gossip; opening a new stream in %g s", RETRY_S)
        except NetworkError as error:
            logger.debug("gossip with %s broke: %s", connection.peer_id, error)

    async def _send_queued(self, connection: Connection, outbox: Outbox, stream: Stream) -> None:
        queue = outbox.open(connection, _subscription(*self._subscribers))
        try:
            while True:
                await queue.filled.wait()
                with trio.fail_after(_WRITE_TIMEOUT_S):
                    await stream.send_all(queue.take())
        finally:
            outbox.close(connection)
            stream.reset()

    async def run(self) -> None:
        """Run the heartbeat of gossipsub, and prove sources, without end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._intake.run)
            nursery.start_soon(self._beat)

    async def _beat(self) -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            self._heartbeat()

    def _release(self, peer_id: str) -> None:
        del self._peers[peer_id]
        self._mesh.remove_peer(peer_id)
        self._host.changes.notify()

    def _send(self, peer_id: str, rpc: rpc_pb2.RPC) -> None:
        peer = self._peers.get(peer_id)
        if peer is not None and not peer.outbox.put(rpc):
            _refusal_log.warning(peer_id, "reads its gossip too slowly; messages to it are dropped")

    def _announce(self, subscriptions: rpc_pb2.RPC) -> None:
        for peer_id, peer in self._peers.items():
            if not peer.outbox.put_subscriptions(subscriptions):
                _refusal_log.warning(peer_id, "reads its gossip too slowly; a changed subscription is not announced")

    async def _receive(self, connection: Connection, stream: Stream) -> None:
        """Read the gossip of a peer. A peer needs one stream, or two while one connection replaces another."""
        peer = self._peers.setdefault(connection.peer_id, _Peer())
        streams = peer.inbound
        streams.append(stream)
        if len(streams) > MAX_STREAMS_PER_PEER:
            streams.pop(0).reset()
        try:
            while True:
                # In a call of its own, so that no variable keeps a message alive while the next one is awaited.
                await self._receive_rpc(connection, peer, stream)
        except (RemoteRefused, ProtobufError, UnicodeDecodeError) as error:
            _refusal_log.warning(connection.peer_id, "sent malformed gossip: %s", error)
            stream.reset()
        finally:
            if stream in streams:
                streams.remove(stream)

    async def _receive_rpc(self, connection: Connection, peer: _Peer, stream: Stream) -> None:
        rpc = rpc_pb2.RPC.FromString(await read_prefixed(stream, MAX_RPC_BYTES))
        for message in rpc.publish[:MAX_MESSAGES_PER_RPC]:
            if len(message.topicIDs) == 1 and message.topicIDs[0] in self._subscribers:
                await trio.lowlevel.checkpoint()  # checking a signature takes long
                await connection.muxed.cpu_share.turn()
                self._intake.handle(connection.peer_id, message)
        self._handle_control(connection.peer_id, peer, rpc)

    def _handle_control(self, peer_id: str, peer: _Peer, rpc: rpc_pb2.RPC) -> None:
        if rpc.subscriptions:
            self._handle_subscriptions(peer_id, peer, rpc)
        if rpc.HasField("control"):
            answer = rpc_pb2.RPC()
            self._handle_grafts(peer_id, rpc.control, answer)
            for prune in rpc.control.prune[:MAX_TOPICS_PER_PEER]:
                self._mesh.prune(peer_id, prune.topicID, time.monotonic(), float(prune.backoff or PRUNE_BACKOFF_S))
            self._handle_ihave(peer, rpc.control, answer)
            if answer.ByteSize():
                self._send(peer_id, answer)
            self._handle_iwant(peer_id, peer, rpc.control)

    def _accept(self, peer_id: str, message: rpc_pb2.Message, id_: bytes, gossip: Gossip[Any]) -> None:
        """Forward a message, and deliver it."""
        (topic,) = message.topicIDs
        self._cache.put(id_, message)
        rpc = rpc_pb2.RPC(publish=[message])
        for member in self._mesh.members(topic):
            if member not in (peer_id, gossip.source):
                self._send(member, rpc)
        self._deliver(topic, peer_id, gossip)

    def _deliver(self, topic: str, peer_id: str, gossip: Gossip[Any]) -> None:
        for channel in list(self._subscribers[topic]):
            try:
                channel.send_nowait(gossip)
            except trio.WouldBlock:
                _refusal_log.warning(peer_id, "a message on %s was dropped: its reader is too slow", topic)
            except trio.BrokenResourceError:  # the reader has closed its end
                self._subscribers[topic].remove(channel)
        if not self._subscribers[topic]:
            self._unsubscribe(topic)

    def _unsubscribe(self, topic: str) -> None:
        del self._subscribers[topic]
        self._intake.ignore(topic)
        for peer_id in self._mesh.leave(topic):
            self._send(peer_id, _control(prune=[_prune(topic)]))
        self._announce(_subscription(topic, subscribe=False))

    def _handle_subscriptions(self, peer_id: str, peer: _Peer, rpc: rpc_pb2.RPC) -> None:
        for subscription in rpc.subscriptions[:MAX_TOPICS_PER_PEER]:
            topic = subscription.topicid
            if not subscription.subscribe:
                peer.topics.discard(topic)
                self._mesh.remove(peer_id, topic)
            elif len(peer.topics) < MAX_TOPICS_PER_PEER and len(topic) <= MAX_TOPIC_LENGTH:
                peer.topics.add(topic)
                if topic in self._subscribers:
                    self._fill_mesh(topic)
            else:
                _refusal_log.warning(peer_id, "subscribes to more than %d topics", MAX_TOPICS_PER_PEER)
        self._host.changes.notify()

    def _fill_mesh(self, topic: str) -> None:
        for peer_id in self._mesh.fill(topic, self.peers(topic), time.monotonic()):
            self._send(peer_id, _control(graft=[rpc_pb2.ControlGraft(topicID=topic)]))

    def _handle_grafts(self, peer_id: str, control: rpc_pb2.ControlMessage, answer: rpc_pb2.RPC) -> None:
        now = time.monotonic()
        for graft in control.graft[:MAX_TOPICS_PER_PEER]:
            topic = graft.topicID
            # In gossipsub 1.1, a graft of an unknown topic gets no answer.
            if topic in self._mesh and not self._mesh.graft(peer_id, topic, now):
                self._mesh.prune(peer_id, topic, now)
                answer.control.prune.append(_prune(topic))

    def _handle_ihave(self, peer: _Peer, control: rpc_pb2.ControlMessage, answer: rpc_pb2.RPC) -> None:
        wanted: list[bytes] = []
        for ihave in control.ihave:
            peer.ihave_messages += 1
            if ihave.topicID not in self._subscribers or peer.ihave_messages > MAX_IHAVE_MESSAGES:
                continue
            remaining = MAX_IHAVE_IDS - peer.ihave_ids
            fresh = [id_ for id_ in ihave.messageIDs[:remaining] if self._intake.wants(ihave.topicID, id_)]
            peer.ihave_ids += len(fresh)
            wanted += fresh
        if wanted:
            answer.control.iwant.append(rpc_pb2.ControlIWant(messageIDs=wanted))

    def _handle_iwant(self, peer_id: str, peer: _Peer, control: rpc_pb2.ControlMessage) -> None:
        ids = islice(chain.from_iterable(iwant.messageIDs for iwant in control.iwant), MAX_IHAVE_IDS)
        for id_ in ids:
            message = self._cache.get(id_)
            if message is not None and peer.retransmissions.get(id_, 0) < MAX_RETRANSMISSIONS:
                peer.retransmissions[id_] = peer.retransmissions.get(id_, 0) + 1
                self._send(peer_id, rpc_pb2.RPC(publish=[message]))

    def _heartbeat(self) -> None:
        now = time.monotonic()
        self._mesh.expire_backoffs(now)
        for peer in self._peers.values():
            peer.ihave_messages = peer.ihave_ids = 0
            peer.retransmissions = {
                id_: count for id_, count in peer.retransmissions.items() if self._cache.get(id_) is not None
            }
        for topic in self._subscribers:
            for peer_id in self._mesh.trim(topic, now):
                self._send(peer_id, _control(prune=[_prune(topic)]))
            self._fill_mesh(topic)
            self._emit_ihave(topic)
        self._cache.shift()

    def _emit_ihave(self, topic: str) -> None:
        """Send the ids of recent messages to some subscribers outside the mesh."""
        ids = self._cache.recent(topic)
        others = [peer_id for peer_id in self.peers(topic) if peer_id not in self._mesh.members(topic)]
        if not ids or not others:
            return
        ids = random.sample(ids, min(len(ids), MAX_EMITTED_IDS))
        for peer_id in random.sample(others, min(D_LAZY, len(others))):
            self._send(peer_id, _control(ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=ids)]))


def _subscription(*topics: str, subscribe: bool = True) -> rpc_pb2.RPC:
    return rpc_pb2.RPC(subscriptions=[rpc_pb2.RPC.SubOpts(subscribe=subscribe, topicid=topic) for topic in topics])


def _control(**parts: object) -> rpc_pb2.RPC:
    return rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**parts))  # type: ignore[arg-type]


def _prune(topic: str) -> rpc_pb2.ControlPrune:
    return rpc_pb2.ControlPrune(topicID=topic, backoff=int(PRUNE_BACKOFF_S))
