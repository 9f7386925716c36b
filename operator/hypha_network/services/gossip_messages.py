"""Gossip messages: signatures and ids, a record of those seen, and a cache of the latest ones."""

import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.types import peer_id_from_bytes, peer_id_to_bytes

HISTORY_WINDOWS = 5
HISTORY_GOSSIP_WINDOWS = 3
SEEN_S = 60.0
MAX_SEEN = 200_000
MAX_CACHED_BYTES = 16 * 1024 * 1024

_SIGN_PREFIX = b"libp2p-pubsub:"
_ED25519_KEY_PREFIX = bytes.fromhex("08011220")
_ED25519_PEER_ID_PREFIX = bytes.fromhex("0024") + _ED25519_KEY_PREFIX
_SEQUENCE_BYTES = 8

Message = TypeVar("Message")


@dataclass(frozen=True)
class Gossip(Generic[Message]):
    """A decoded message that a subscriber receives, and the peer that signed it."""

    source: str
    message: Message


class Signer:
    """Signs the messages of this node."""

    def __init__(self, seed: bytes, peer_id: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._source = peer_id_to_bytes(peer_id)
        self._sequence = time.time_ns()  # must keep growing when the node restarts

    def sign(self, topic: str, data: bytes) -> rpc_pb2.Message:
        """Return a signed message of this node with `data` on `topic`."""
        self._sequence += 1
        message = rpc_pb2.Message(
            from_id=self._source, data=data, seqno=self._sequence.to_bytes(_SEQUENCE_BYTES, "big"), topicIDs=[topic]
        )
        message.signature = self._key.sign(_SIGN_PREFIX + message.SerializeToString())
        return message


def verify(message: rpc_pb2.Message) -> str:
    """Return the peer that signed a message; ValueError if the message is malformed or forged."""
    if not message.HasField("signature"):
        raise ValueError("the message is not signed")
    if not message.from_id.startswith(_ED25519_PEER_ID_PREFIX):
        raise ValueError("the message's source is not an Ed25519 peer id")
    source = peer_id_from_bytes(message.from_id)
    key = message.from_id[len(_ED25519_PEER_ID_PREFIX) :]
    if message.key and message.key != _ED25519_KEY_PREFIX + key:
        raise ValueError(f"a message of {source} carries the key of another peer")
    unsigned = rpc_pb2.Message()
    unsigned.CopyFrom(message)
    unsigned.ClearField("signature")
    unsigned.ClearField("key")
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(message.signature, _SIGN_PREFIX + unsigned.SerializeToString())
    except (InvalidSignature, ValueError):
        raise ValueError(f"the signature of a message of {source} is not valid") from None
    return source


def message_id(message: rpc_pb2.Message) -> bytes:
    """Return a message's id: source and sequence number as text, as every node of this network computes it.

    ValueError if the message has no sequence number of the right length.
    """
    if len(message.seqno) != _SEQUENCE_BYTES:
        raise ValueError("the message has no sequence number")
    try:
        source = peer_id_from_bytes(message.from_id)
    except (ValueError, IndexError):
        source = message.from_id.hex()
    return f"{source}{int.from_bytes(message.seqno, 'big')}".encode()


class SeenCache:
    """The ids of recent messages, bounded in time and number."""

    def __init__(self) -> None:
        self._times: OrderedDict[bytes, float] = OrderedDict()

    def __contains__(self, id_: bytes) -> bool:
        return id_ in self._times

    def add(self, id_: bytes, now: float) -> None:
        """Record a message, and drop the records that are too old or too many."""
        self._times[id_] = now
        while self._times and (len(self._times) > MAX_SEEN or next(iter(self._times.values())) < now - SEEN_S):
            self._times.popitem(last=False)


class MessageCache:
    """The messages of the last heartbeats, for peers that missed one. Bounded in bytes."""

    def __init__(self) -> None:
        self._windows: deque[dict[bytes, rpc_pb2.Message]] = deque([{}], maxlen=HISTORY_WINDOWS)
        self._size_bytes = 0

    def put(self, id_: bytes, message: rpc_pb2.Message) -> None:
        """Store a message, unless the cache is full."""
        size = message.ByteSize()
        if self._size_bytes + size <= MAX_CACHED_BYTES:
            alone = rpc_pb2.Message()  # a copy, because the message itself keeps its complete RPC in memory
            alone.CopyFrom(message)
            self._windows[0][id_] = alone
            self._size_bytes += size

    def get(self, id_: bytes) -> rpc_pb2.Message | None:
        """Return a message; None if it is not in the cache."""
        return next((window[id_] for window in self._windows if id_ in window), None)

    def recent(self, topic: str) -> list[bytes]:
        """Return the ids of a topic's messages that IHAVE announces to other peers."""
        windows = islice(self._windows, HISTORY_GOSSIP_WINDOWS)
        return [id_ for window in windows for id_, message in window.items() if topic in message.topicIDs]

    def shift(self) -> None:
        """Begin a new window, and drop the oldest one if there are too many."""
        if len(self._windows) == HISTORY_WINDOWS:
            self._size_bytes -= sum(message.ByteSize() for message in self._windows[-1].values())
        self._windows.appendleft({})
