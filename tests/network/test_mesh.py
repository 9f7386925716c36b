"""The maintenance of the gossip mesh, without connections. A peer is an outbox that records the messages sent to it."""

import pytest
from libp2p.pubsub.pb import rpc_pb2

from hypha_network.host import Host
from hypha_network.services import gossip
from hypha_network.services.gossip import PubSub, _Peer
from hypha_network.services.gossip_mesh import D_HIGH, D
from hypha_network.services.gossip_messages import Signer
from hypha_network.services.gossip_outbox import MAX_QUEUED_BYTES, Outbox
from hypha_network.services.source_prover import SourceProver
from hypha_network.wire.addresses import Address
from support.certs import Pki

IDENTITY = Pki().identity("a")
TOPIC = "hypha/worker"


async def no_gateways(_: str) -> dict[str, tuple[Address, ...]]:
    return {}


class Sent(Outbox):
    """Records the messages sent to a peer."""

    def __init__(self) -> None:
        self.rpcs: list[rpc_pb2.RPC] = []

    def put(self, rpc: rpc_pb2.RPC) -> bool:
        self.rpcs.append(rpc)
        return True

    put_subscriptions = put

    def controls(self, kind: str) -> list[rpc_pb2.ControlMessage]:
        return [part for rpc in self.rpcs for part in getattr(rpc.control, kind)]


class Mesh:
    def __init__(self, peers: int) -> None:
        host = Host(IDENTITY.peer_id, None, None)  # type: ignore[arg-type]
        self.pubsub = PubSub(host, Signer(IDENTITY.seed, IDENTITY.peer_id), SourceProver(host, no_gateways))
        self.sent = {f"peer {number}": Sent() for number in range(peers)}
        for peer_id, outbox in self.sent.items():
            self.pubsub._peers[peer_id] = _Peer(connections=1, outbox=outbox, topics={TOPIC})
        self.pubsub.subscribe(TOPIC, bytes, 10)

    @property
    def members(self) -> set[str]:
        return self.pubsub._mesh.members(TOPIC)

    def receive(self, peer_id: str, **control: object) -> None:
        rpc = rpc_pb2.RPC(control=rpc_pb2.ControlMessage(**control))  # type: ignore[arg-type]
        self.pubsub._handle_control(peer_id, self.pubsub._peers[peer_id], rpc)


pytestmark = pytest.mark.anyio


async def test_a_mesh_is_filled_with_six_peers() -> None:
    mesh = Mesh(20)
    assert len(mesh.members) == D
    assert {peer_id for peer_id, sent in mesh.sent.items() if sent.controls("graft")} == mesh.members


async def test_all_peers_join_a_small_mesh() -> None:
    assert len(Mesh(3).members) == 3


async def test_a_peer_that_prunes_leaves_the_mesh_and_is_not_grafted_during_its_backoff() -> None:
    mesh = Mesh(3)
    mesh.receive("peer 1", prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=60)])
    mesh.pubsub._heartbeat()
    assert mesh.members == {"peer 0", "peer 2"}
    assert len(mesh.sent["peer 1"].controls("graft")) == 1


async def test_a_graft_within_the_backoff_is_answered_with_prune() -> None:
    mesh = Mesh(3)
    mesh.receive("peer 1", prune=[rpc_pb2.ControlPrune(topicID=TOPIC)])
    mesh.receive("peer 1", graft=[rpc_pb2.ControlGraft(topicID=TOPIC)])
    assert mesh.sent["peer 1"].controls("prune")
    assert "peer 1" not in mesh.members


async def test_grafts_are_accepted_up_to_the_limit() -> None:
    mesh = Mesh(20)
    for peer_id in mesh.sent:
        mesh.receive(peer_id, graft=[rpc_pb2.ControlGraft(topicID=TOPIC)])
    assert len(mesh.members) == D_HIGH
    pruned = {peer_id for peer_id, sent in mesh.sent.items() if sent.controls("prune")}
    assert pruned == set(mesh.sent) - mesh.members


async def test_a_mesh_that_is_too_large_is_trimmed_at_the_heartbeat() -> None:
    mesh = Mesh(20)
    mesh.members.update(mesh.sent)
    mesh.pubsub._heartbeat()
    assert len(mesh.members) == D


async def test_a_mesh_that_is_too_small_is_filled_at_the_heartbeat() -> None:
    mesh = Mesh(20)
    for peer_id in list(mesh.members)[:3]:
        mesh.pubsub._release(peer_id)
    mesh.pubsub._heartbeat()
    assert len(mesh.members) == D


async def test_a_graft_of_an_unknown_topic_is_ignored() -> None:
    mesh = Mesh(1)
    mesh.receive("peer 0", graft=[rpc_pb2.ControlGraft(topicID="another")])
    assert not mesh.sent["peer 0"].controls("prune")
    assert "another" not in mesh.pubsub._mesh


async def test_peers_outside_the_mesh_are_sent_ihave_at_the_heartbeat() -> None:
    mesh = Mesh(20)
    mesh.pubsub.publish(TOPIC, b"hello")
    mesh.pubsub._heartbeat()
    announced_to = {peer_id for peer_id, sent in mesh.sent.items() if sent.controls("ihave")}
    assert len(announced_to) == gossip.D_LAZY
    assert not announced_to & mesh.members


async def test_only_unknown_messages_are_requested_up_to_a_limit() -> None:
    mesh = Mesh(1)
    ids = [str(number).encode() for number in range(gossip.MAX_IHAVE_IDS + 10)]
    mesh.pubsub._intake.seen.add(ids[0], 0)
    for _ in range(20):
        mesh.receive("peer 0", ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=ids)])
    asked = [id_ for iwant in mesh.sent["peer 0"].controls("iwant") for id_ in iwant.messageIDs]
    assert ids[0] not in asked
    assert len(asked) <= gossip.MAX_IHAVE_IDS


async def test_a_message_is_retransmitted_at_most_three_times() -> None:
    mesh = Mesh(1)
    mesh.pubsub.publish(TOPIC, b"hello")
    (id_,) = mesh.pubsub._cache.recent(TOPIC)
    mesh.sent["peer 0"].rpcs.clear()
    for _ in range(10):
        mesh.receive("peer 0", iwant=[rpc_pb2.ControlIWant(messageIDs=[id_])])
    assert sum(len(rpc.publish) for rpc in mesh.sent["peer 0"].rpcs) == gossip.MAX_RETRANSMISSIONS


async def test_the_queue_of_a_peer_that_does_not_read_is_bounded() -> None:
    outbox = Outbox()
    rpc = rpc_pb2.RPC(publish=[Signer(IDENTITY.seed, IDENTITY.peer_id).sign(TOPIC, bytes(60_000))])
    assert sum(outbox.put(rpc) for _ in range(1000)) == MAX_QUEUED_BYTES // (rpc.ByteSize() + 3)


async def test_a_limited_number_of_subscriptions_of_one_message_counts() -> None:
    mesh = Mesh(1)
    peer = mesh.pubsub._peers["peer 0"]
    subscriptions = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"topic {number}") for number in range(1000)]
    for _ in range(3):
        mesh.pubsub._handle_subscriptions("peer 0", peer, rpc_pb2.RPC(subscriptions=subscriptions))
    assert len(peer.topics) == gossip.MAX_TOPICS_PER_PEER
    others = [rpc_pb2.RPC.SubOpts(subscribe=False, topicid="another")] * gossip.MAX_TOPICS_PER_PEER
    last = rpc_pb2.RPC.SubOpts(subscribe=False, topicid=TOPIC)
    mesh.pubsub._handle_subscriptions("peer 0", peer, rpc_pb2.RPC(subscriptions=[*others, last]))
    assert TOPIC in peer.topics


async def test_a_limited_number_of_prunes_and_grafts_of_one_message_counts() -> None:
    mesh = Mesh(1)
    prunes = [rpc_pb2.ControlPrune(topicID="another")] * gossip.MAX_TOPICS_PER_PEER
    mesh.receive("peer 0", prune=[*prunes, rpc_pb2.ControlPrune(topicID=TOPIC)])
    assert mesh.members == {"peer 0"}
    mesh.receive("peer 0", prune=[rpc_pb2.ControlPrune(topicID=TOPIC)])
    mesh.receive("peer 0", graft=[rpc_pb2.ControlGraft(topicID=TOPIC)] * 1000)
    assert len(mesh.sent["peer 0"].controls("prune")) == gossip.MAX_TOPICS_PER_PEER


async def test_a_limited_number_of_messages_may_be_requested_at_once() -> None:
    mesh = Mesh(1)
    mesh.pubsub.publish(TOPIC, b"hello")
    (id_,) = mesh.pubsub._cache.recent(TOPIC)
    mesh.sent["peer 0"].rpcs.clear()
    unknown = [b"unknown"] * (gossip.MAX_IHAVE_IDS - 1)
    requests = [rpc_pb2.ControlIWant(messageIDs=ids) for ids in (unknown, [id_, id_])]
    mesh.receive("peer 0", iwant=requests)
    assert sum(len(rpc.publish) for rpc in mesh.sent["peer 0"].rpcs) == 1
