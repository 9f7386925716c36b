"""The messages of `/ipfs/kad/1.0.0`. Records have two fields that py-libp2p lacks: publisher and lifetime."""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError as ProtobufError

from hypha_messages.types import peer_id_from_bytes, peer_id_to_bytes
from hypha_network.errors import RemoteRefused
from hypha_network.wire import addresses
from hypha_network.wire.addresses import Address

MAX_MESSAGE_BYTES: Final = 16 * 1024
MAX_PEERS = 20
MAX_ADDRESSES_PER_PEER = 8
MAX_PARSED_PER_PEER = 12
"""Some of a peer's addresses may be for transports that this node lacks."""


class Kind(IntEnum):
    """The kind of a request, and of its response."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True)
class Record:
    """A value that a peer published. `publisher` is None if the answering peer did not name it."""

    value: bytes
    publisher: str | None


@dataclass(frozen=True)
class StoredRecord:
    """A record with its key and its remaining lifetime in seconds, where 0 means unknown."""

    key: bytes
    record: Record
    lifetime_s: int = 0


@dataclass(frozen=True)
class Message:
    """A request or a response."""

    kind: Kind
    key: bytes = b""
    record: StoredRecord | None = None
    closer: tuple[tuple[str, tuple[Address, ...]], ...] = ()


def _build() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="hypha_network/kademlia.proto", package="hypha_network.services.kademlia", syntax="proto2"
    )

    def message(name: str, *fields: tuple[str, int, int | str, bool]) -> None:
        descriptor = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            added = descriptor.field.add(
                name=field_name, number=number, label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            )
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                added.type = kind  # type: ignore[assignment]

    message(
        "Record",
        ("key", 1, field.TYPE_BYTES, False),
        ("value", 2, field.TYPE_BYTES, False),
        ("publisher", 666, field.TYPE_BYTES, False),
        ("ttl", 777, field.TYPE_UINT32, False),
    )
    message(
        "Peer",
        ("id", 1, field.TYPE_BYTES, False),
        ("addrs", 2, field.TYPE_BYTES, True),
        ("connection", 3, field.TYPE_INT32, False),
    )
    message(
        "Message",
        ("type", 1, field.TYPE_INT32, False),
        ("key", 2, field.TYPE_BYTES, False),
        ("record", 3, "Record", False),
        ("closerPeers", 8, "Peer", True),
        ("clusterLevelRaw", 10, field.TYPE_INT32, False),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Message"))


_Message: Final = _build()


def encode(message: Message) -> bytes:
    """Return the bytes of a message."""
    wire = _Message(type=int(message.kind), key=message.key, clusterLevelRaw=10)
    if message.record is not None:
        wire.record.key = message.record.key
        wire.record.value = message.record.record.value
        if message.record.record.publisher is not None:
            wire.record.publisher = peer_id_to_bytes(message.record.record.publisher)
        if message.record.lifetime_s:
            wire.record.ttl = message.record.lifetime_s
    closer = b"".join(_encode_closer(peer_id, known) for peer_id, known in message.closer[:MAX_PEERS])
    return bytes(wire.SerializeToString()) + closer


@lru_cache(maxsize=2048)
def _encode_closer(peer_id: str, known: tuple[Address, ...]) -> bytes:
    """Return a member of `closerPeers`. It is kept, because a gateway answers with the same peers again and again."""
    wire = _Message()
    wire.closerPeers.add(
        id=peer_id_to_bytes(peer_id), addrs=[a.to_bytes() for a in known[:MAX_ADDRESSES_PER_PEER]], connection=1
    )
    return bytes(wire.SerializeToString())


def decode(data: bytes) -> Message:
    """Return the message; RemoteRefused if the bytes do not encode one."""
    try:
        wire = _Message.FromString(data)
        record = None
        if wire.HasField("record"):
            publisher = peer_id_from_bytes(wire.record.publisher) if wire.record.publisher else None
            record = StoredRecord(wire.record.key, Record(wire.record.value, publisher), wire.record.ttl)
        closer = tuple(
            (
                peer_id_from_bytes(peer.id),
                tuple(addresses.usable(peer.addrs[:MAX_PARSED_PER_PEER], MAX_ADDRESSES_PER_PEER)),
            )
            for peer in wire.closerPeers[:MAX_PEERS]
        )
        return Message(Kind(wire.type), wire.key, record, closer)
    except (ProtobufError, ValueError, IndexError) as error:
        raise RemoteRefused(f"not a Kademlia message: {error}") from error
