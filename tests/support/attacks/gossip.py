"""Attacks by gossip: requests for nothing, of fresh keys, forged ones, and messages that are meant to cost much."""

import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from uuid import UUID

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.advertisement import TOPIC, RequestWorker, WorkerSpec, encode
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources, SystemTime, peer_id_to_bytes
from hypha_network.wire.multistream import encode_varint, prefixed
from support.attacks.raw_peer import RawPeer
from support.attacks.target import Target
from support.cbor_bombs import BOMBS

GOSSIP = "/meshsub/1.1.0"
RPC_BYTES = 60_000
VALID_FOR_S = 3600
_SIGN_PREFIX = b"libp2p-pubsub:"
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_NO_ID = UUID(bytes=b"\xa5" * 16)


def request_template(resources: Resources, bid: float) -> bytes:
    """A request for a worker with the tests' executor. It contains `_NO_ID`, for the attacker to replace."""
    spec = WorkerSpec(resources=resources, executor=[ExecutorDescriptor(class_="train", name="test")])
    timeout = SystemTime.from_timestamp(time.time() + VALID_FOR_S)
    return encode(RequestWorker(id=_NO_ID, spec=spec, timeout=timeout, bid=bid))


class Author:
    """Signs gossip with a key, fast."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        source = _PEER_ID_PREFIX + key.public_key().public_bytes_raw()
        self._from = b"\x0a" + prefixed(source)
        self._topic = b"\x22" + prefixed(TOPIC.encode())

    def sign(self, data: bytes) -> bytes:
        """Return a field `publish` of an RPC."""
        unsigned = self._from + b"\x12" + prefixed(data) + b"\x1a\x08" + os.urandom(8) + self._topic
        return publish(unsigned + b"\x2a" + prefixed(self._key.sign(_SIGN_PREFIX + unsigned)))


def publish(message: bytes) -> bytes:
    """Return a message as a field `publish` of an RPC."""
    return b"\x12" + prefixed(message)


def rpcs(make: Callable[[], bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield RPCs as large as the victim accepts, and the number of their messages, without end."""
    while True:
        parts: list[bytes] = []
        size = 0
        while size < RPC_BYTES:
            parts.append(make())
            size += len(parts[-1])
        rpc = b"".join(parts)
        yield prefixed(rpc), len(parts)


async def _send_all(peer: RawPeer, source: Iterator[tuple[bytes, int]]) -> None:
    stream_id = await peer.open(GOSSIP)
    for rpc, messages in source:
        await peer.send(stream_id, rpc, messages)
        await trio.lowlevel.checkpoint()


def _requests(author: Callable[[], Author], data: bytes) -> Callable[[], bytes]:
    return lambda: author().sign(data.replace(_NO_ID.bytes, os.urandom(16)))


async def requests_for_nothing(peer: RawPeer, target: Target) -> None:
    """Valid requests for no resources at all, at a bid of 1."""
    author = Author(Ed25519PrivateKey.from_private_bytes(target.seeds[peer.peer_id]))
    await _send_all(peer, rpcs(_requests(lambda: author, request_template(Resources(), 1.0))))


async def requests_of_fresh_keys(peer: RawPeer, _: Target) -> None:
    """Valid requests, each signed by another key without a certificate, that outbid every honest one."""
    data = request_template(Resources(cpu=1, memory=1, storage=1), 1e6)
    await _send_all(peer, rpcs(_requests(lambda: Author(Ed25519PrivateKey.generate()), data)))


async def forged_gossip(peer: RawPeer, target: Target) -> None:
    """Requests in the name of certified peers, with bad signatures."""
    data, names = request_template(Resources(cpu=1), 1e6), cycle(target.seeds)

    def forge() -> bytes:
        source = peer_id_to_bytes(next(names))
        unsigned = b"\x0a" + prefixed(source) + b"\x12" + prefixed(data) + b"\x1a\x08" + os.urandom(8)
        return publish(unsigned + b"\x22" + prefixed(TOPIC.encode()) + b"\x2a" + prefixed(os.urandom(64)))

    await _send_all(peer, rpcs(forge))


async def tiny_forged_gossip(peer: RawPeer, _: Target) -> None:
    """As many forged messages as an RPC holds."""
    tail = b"\x22" + prefixed(TOPIC.encode()) + b"\x2a" + prefixed(b"no")
    source = b"\x0a" + prefixed(_PEER_ID_PREFIX + bytes(32))
    await _send_all(peer, rpcs(lambda: publish(source + b"\x1a\x08" + os.urandom(8) + tail)))


async def long_sequence_numbers(peer: RawPeer, _: Target) -> None:
    """Messages whose sequence number has 1,800 bytes."""

    def make() -> bytes:
        source = b"\x0a" + prefixed(_PEER_ID_PREFIX + bytes(32))
        return publish(source + b"\x1a" + prefixed(os.urandom(1800)) + b"\x22" + prefixed(TOPIC.encode()))

    await _send_all(peer, rpcs(make))


async def bombs_in_gossip(peer: RawPeer, _: Target) -> None:
    """CBOR that is meant to stop a decoder, signed by fresh keys."""
    bombs = cycle(bomb for bomb in BOMBS.values() if len(bomb) < RPC_BYTES)
    await _send_all(peer, rpcs(lambda: Author(Ed25519PrivateKey.generate()).sign(next(bombs))))


async def malformed_gossip(peer: RawPeer, _: Target) -> None:
    """RPCs that are not protobuf, or too large, each on a stream of its own."""
    bodies = cycle((b"\xff" * 20, encode_varint(1 << 30) + bytes(4096), prefixed(b"\xff" * 60_000), prefixed(b"\x0a")))
    while True:
        await peer.write(b"".join(peer.opening(GOSSIP, next(bodies)) for _ in range(8)), 8)


async def gossip_control(peer: RawPeer, _: Target) -> None:
    """Subscriptions, grafts, prunes and announcements by the thousand."""
    number = 0
    stream_id = await peer.open(GOSSIP)
    while True:
        number += 1
        control = rpc_pb2.ControlMessage(
            ihave=[rpc_pb2.ControlIHave(topicID=TOPIC, messageIDs=[b"%d.%d" % (number, n) for n in range(1000)])],
            iwant=[rpc_pb2.ControlIWant(messageIDs=[b"%d" % n for n in range(1000)])],
            graft=[rpc_pb2.ControlGraft(topicID=TOPIC)] * 500,
            prune=[rpc_pb2.ControlPrune(topicID=TOPIC, backoff=1)] * 500,
        )
        topics = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"{number} {n}") for n in range(500)]
        mine = [rpc_pb2.RPC.SubOpts(subscribe=bool(n % 2), topicid=TOPIC) for n in range(100)]
        rpc = rpc_pb2.RPC(subscriptions=topics + mine, control=control)
        await peer.send(stream_id, prefixed(rpc.SerializeToString()), 3600)
