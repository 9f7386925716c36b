"""Gossip between nodes on loopback, and with peers that violate the protocol."""

from uuid import uuid4

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages import advertisement
from hypha_messages.advertisement import RequestWorker, WorkerSpec
from hypha_messages.types import Resources, SystemTime
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError, StreamReset
from hypha_network.network import Network
from hypha_network.services import gossip, gossip_intake
from hypha_network.services.gossip_messages import Gossip, Signer
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, messages, node, until

pytestmark = pytest.mark.anyio

TOPIC = advertisement.TOPIC
NOW = SystemTime.from_timestamp(0)


def connection(network: Network, peer: Network) -> Connection:
    found = network._host.connection(peer.peer_id)
    assert found is not None
    return found


async def test_a_subscriber_receives_the_messages_of_other_peers_and_not_its_own() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        received, own = b.subscribe(TOPIC, bytes), a.subscribe(TOPIC, bytes)
        await a.dial(direct_address(b))
        await until(a, lambda: a.subscribers(TOPIC) == [b.peer_id])
        await a.publish(TOPIC, b"hello")
        with trio.fail_after(DEADLINE_S):
            assert await received.receive() == Gossip(a.peer_id, b"hello")
        with pytest.raises(trio.WouldBlock):
            own.receive_nowait()


async def test_a_node_that_subscribes_forwards_gossip() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        b.subscribe(TOPIC, bytes)
        received = c.subscribe(TOPIC, bytes)
        await b.dial(direct_address(a))
        await b.dial(direct_address(c))
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        await until(c, lambda: bool(c.subscribers(TOPIC)))
        await until(b, lambda: bool(b.subscribers(TOPIC)))
        with trio.fail_after(DEADLINE_S):
            await a.publish(TOPIC, b"hello")
            assert await received.receive() == Gossip(a.peer_id, b"hello")


@pytest.fixture
def gossip_streams(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """A node opens no stream for gossip to a peer that it dialled before this event."""
    may_open, open_stream = trio.Event(), Connection.open

    async def open_late(self: Connection, protocols: list[str]) -> Stream:
        if protocols == gossip.PROTOCOLS and not self.inbound:
            await may_open.wait()
        return await open_stream(self, protocols)

    monkeypatch.setattr(Connection, "open", open_late)
    return may_open


async def test_a_message_published_the_moment_a_subscription_becomes_visible_arrives(
    gossip_streams: trio.Event,
) -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        received = b.subscribe(TOPIC, bytes)
        await a.dial(direct_address(b))
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        await a.publish(TOPIC, b"hello")
        gossip_streams.set()
        with trio.fail_after(DEADLINE_S):
            assert await received.receive() == Gossip(a.peer_id, b"hello")


async def test_a_message_forwarded_the_moment_a_subscription_becomes_visible_arrives(
    gossip_streams: trio.Event,
) -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "source") as source:
        forwarded, received = a.subscribe(TOPIC, bytes), b.subscribe(TOPIC, bytes)
        await a.dial(direct_address(source))
        await a.dial(direct_address(b))
        await until(a, lambda: b.peer_id in a.subscribers(TOPIC))
        message = Signer(source.identity.seed, source.peer_id).sign(TOPIC, b"hello")
        a._pubsub._intake.handle(source.peer_id, message)
        with trio.fail_after(DEADLINE_S):
            await forwarded.receive()
            gossip_streams.set()
            assert await received.receive() == Gossip(source.peer_id, b"hello")


async def test_members_of_a_gateway_receive_each_others_messages() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a:
        received = a.subscribe(TOPIC, bytes)
        async with member(pki, "b", g) as b:
            await until(b, lambda: a.peer_id in b.subscribers(TOPIC))
            await b.publish(TOPIC, b"hello")
            with trio.fail_after(DEADLINE_S):
                assert (await received.receive()).source == b.peer_id


async def test_a_thousand_messages_arrive_in_order_and_once() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        received = b.subscribe(TOPIC, bytes, limit=1000)
        await a.dial(direct_address(b))
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        for number in range(1000):
            await a.publish(TOPIC, b"%d" % number)
        with trio.fail_after(DEADLINE_S):
            assert [(await received.receive()).message for _ in range(1000)] == [
                b"%d" % number for number in range(1000)
            ]
        with pytest.raises(trio.WouldBlock):
            received.receive_nowait()


async def test_publishing_without_subscribers_is_an_error() -> None:
    async with node(Pki(), "a") as a:
        with pytest.raises(NetworkError, match="no connected peer subscribes"):
            await a.publish(TOPIC, b"hello")


async def test_a_message_that_is_too_large_is_an_error() -> None:
    async with node(Pki(), "a") as a:
        with pytest.raises(NetworkError, match="too large"):
            await a.publish(TOPIC, bytes(70_000))


async def test_a_slow_reader_loses_messages_and_does_not_delay_other_readers(caplog: pytest.LogCaptureFixture) -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        slow, quick = b.subscribe(TOPIC, bytes, limit=2), b.subscribe(TOPIC, bytes, limit=100)
        await a.dial(direct_address(b))
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        for number in range(50):
            await a.publish(TOPIC, b"%d" % number)
        with trio.fail_after(DEADLINE_S):
            assert [(await quick.receive()).message for _ in range(50)][-1] == b"49"
        assert [slow.receive_nowait().message for _ in range(2)] == [b"0", b"1"]
    assert any("its reader is too slow" in text for text in messages(caplog.records))


async def test_a_topic_without_readers_is_unsubscribed() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        async with b.subscribe(TOPIC, bytes):
            await a.dial(direct_address(b))
            await until(a, lambda: bool(a.subscribers(TOPIC)))
        await a.publish(TOPIC, b"nobody is there")
        await until(a, lambda: not a.subscribers(TOPIC))


async def test_a_subscription_made_after_connecting_is_announced() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await a.dial(direct_address(b))
        received = b.subscribe(TOPIC, bytes)
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        await a.publish(TOPIC, b"hello")
        with trio.fail_after(DEADLINE_S):
            assert (await received.receive()).message == b"hello"


async def test_forged_gossip_is_refused_and_honest_gossip_of_the_same_peer_is_delivered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pki = Pki()
    identity = pki.identity("signer")
    honest = Signer(identity.seed, identity.peer_id).sign(TOPIC, b"honest")
    forged = Signer(identity.seed, identity.peer_id).sign(TOPIC, b"honest")
    forged.data = b"forged"
    unsigned = Signer(identity.seed, identity.peer_id).sign(TOPIC, b"unsigned")
    unsigned.ClearField("signature")
    async with node(pki, "a") as a, node(pki, "b") as b:
        received = b.subscribe(TOPIC, bytes)
        await a.dial(direct_address(b))
        stream = await connection(a, b).open(gossip.PROTOCOLS)
        for message in (forged, unsigned, honest):
            await stream.send_all(prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))
        with trio.fail_after(DEADLINE_S):
            assert await received.receive() == Gossip(identity.peer_id, b"honest")
        assert b.connected_peers() == [a.peer_id]
    assert any(f"{a.peer_id}: refused gossip" in text for text in messages(caplog.records))


async def test_a_message_that_does_not_decode_is_not_forwarded(caplog: pytest.LogCaptureFixture) -> None:
    pki = Pki()
    identity = pki.identity("signer")
    author = Signer(identity.seed, identity.peer_id)
    malformed = author.sign(TOPIC, bytes.fromhex("c482190fff01"))  # a decimal fraction, 1e4095
    request = RequestWorker(id=uuid4(), spec=WorkerSpec(resources=Resources(), executor=[]), timeout=NOW, bid=1)
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        b.subscribe(TOPIC, advertisement.decode)
        received = c.subscribe(TOPIC, bytes)
        await c.dial(direct_address(b))
        await until(b, lambda: b.subscribers(TOPIC) == [c.peer_id])
        await a.dial(direct_address(b))
        stream = await connection(a, b).open(gossip.PROTOCOLS)
        for message in (malformed, author.sign(TOPIC, advertisement.encode(request))):
            await stream.send_all(prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))
        with trio.fail_after(DEADLINE_S):
            assert advertisement.decode((await received.receive()).message) == request
    assert any(f"{a.peer_id}: refused gossip" in text for text in messages(caplog.records))


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff\xff\xff", prefixed(b"\xff" * 100), b"\x80\x80\x80\x80\x80\x01"])
async def test_garbage_ends_its_own_stream_only(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        received = b.subscribe(TOPIC, bytes)
        await a.dial(direct_address(b))
        stream = await connection(a, b).open(gossip.PROTOCOLS)
        await stream.send_all(garbage)
        with trio.fail_after(DEADLINE_S), pytest.raises(NetworkError):
            await stream.receive_some()
        await until(a, lambda: bool(a.subscribers(TOPIC)))
        await a.publish(TOPIC, b"hello")
        with trio.fail_after(DEADLINE_S):
            assert (await received.receive()).message == b"hello"
    assert any("malformed gossip" in text for text in messages(caplog.records))


async def test_gossip_is_read_from_the_newest_of_many_streams_of_a_peer() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await a.dial(direct_address(b))
        oldest, *_, newest = [await connection(a, b).open(gossip.PROTOCOLS) for _ in range(20)]
        with trio.fail_after(DEADLINE_S), pytest.raises(StreamReset):
            await oldest.receive_some()
        subscription = rpc_pb2.RPC.SubOpts(subscribe=True, topicid="news")
        await newest.send_all(prefixed(rpc_pb2.RPC(subscriptions=[subscription]).SerializeToString()))
        await until(b, lambda: b.subscribers("news") == [a.peer_id])
        assert len(b._pubsub._peers[a.peer_id].inbound) == gossip.MAX_STREAMS_PER_PEER


async def test_a_flood_of_subscriptions_is_bounded() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await a.dial(direct_address(b))
        stream = await connection(a, b).open(gossip.PROTOCOLS)
        topics = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"topic {number}") for number in range(1000)]
        await stream.send_all(prefixed(rpc_pb2.RPC(subscriptions=topics).SerializeToString()))
        await until(b, lambda: bool(b.subscribers("topic 0")))
        assert sum(bool(b.subscribers(topic.topicid)) for topic in topics) == gossip.MAX_TOPICS_PER_PEER


async def test_a_peer_that_missed_a_message_asks_for_it_by_its_id() -> None:
    """The peer is in no mesh. It receives IHAVE at the heartbeat, and the message once it has asked for it."""
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        a.subscribe(TOPIC, bytes)
        await b.dial(direct_address(a))
        stream = await connection(b, a).open(gossip.PROTOCOLS)
        identity = pki.identity("signer")
        message = Signer(identity.seed, identity.peer_id).sign(TOPIC, b"missed")
        prune = rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=60)])
        await stream.send_all(prefixed(rpc_pb2.RPC(publish=[message], control=prune).SerializeToString()))
        received = b.subscribe(TOPIC, bytes)  # after the message
        with trio.fail_after(DEADLINE_S):
            assert (await received.receive()).message == b"missed"


async def test_a_source_that_a_subscriber_does_not_hear_is_dropped_before_anything_is_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        asked, verified = [], []

        def hears(source: str) -> bool:
            asked.append(source)
            return source != a.peer_id

        verify = gossip_intake.verify
        monkeypatch.setattr(gossip_intake, "verify", lambda message: verified.append(verify(message)) or verified[-1])
        received = b.subscribe(TOPIC, bytes, proved_per_s=100, hears=hears)
        for peer in (a, c):
            await peer.dial(direct_address(b))
            await until(peer, lambda peer=peer: peer.subscribers(TOPIC) == [b.peer_id])
        await a.publish(TOPIC, b"from a")
        with trio.fail_after(DEADLINE_S):
            while a.peer_id not in asked:  # noqa: ASYNC110 - the predicate tells no one
                await trio.sleep(0.01)
            await c.publish(TOPIC, b"from c")
            assert await received.receive() == Gossip(c.peer_id, b"from c")
        assert a.peer_id not in verified
