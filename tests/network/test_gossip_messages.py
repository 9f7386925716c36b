"""Signing, naming and remembering gossip; the bytes were recorded from a Rust scheduler where they say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.pubsub.pb import rpc_pb2

from hypha_network.services.gossip_messages import MAX_SEEN, SEEN_S, MessageCache, SeenCache, Signer, message_id, verify
from support.certs import Pki

PKI = Pki()
IDENTITY = PKI.identity("a")
OTHER = PKI.identity("b")
TOPIC = "hypha/worker"


def signed(data: bytes = b"hello") -> rpc_pb2.Message:
    return Signer(IDENTITY.seed, IDENTITY.peer_id).sign(TOPIC, data)


@given(st.binary(max_size=1000))
def test_verifying_a_signed_message_returns_its_signer(data: bytes) -> None:
    message = rpc_pb2.Message.FromString(signed(data).SerializeToString())
    assert verify(message) == IDENTITY.peer_id
    assert message.data == data


def test_a_message_id_consists_of_source_and_sequence_number() -> None:
    message = signed()
    message.seqno = (258).to_bytes(8, "big")
    assert message_id(message) == f"{IDENTITY.peer_id}258".encode()


def test_every_message_of_a_node_has_its_own_id() -> None:
    signer = Signer(IDENTITY.seed, IDENTITY.peer_id)
    assert len({message_id(signer.sign(TOPIC, b"")) for _ in range(100)}) == 100


def test_a_message_may_carry_the_key_of_its_source() -> None:
    message = signed()
    message.key = bytes.fromhex("08011220") + message.from_id[6:]
    assert verify(message) == IDENTITY.peer_id


def change(message: rpc_pb2.Message, what: str) -> None:
    match what:
        case "data":
            message.data += b"!"
        case "topic":
            message.topicIDs[0] = "another"
        case "sequence":
            message.seqno = bytes(8)
        case "source":
            message.from_id = create_new_key_pair(OTHER.seed).public_key.serialize()
        case "another source":
            message.from_id = message.from_id[:6] + bytes(32)
        case "no signature":
            message.ClearField("signature")
        case "empty signature":
            message.signature = b""
        case "no sequence":
            message.ClearField("seqno")
        case "short sequence":
            message.seqno = b"\x01"
        case "no source":
            message.ClearField("from_id")
        case "another key":
            message.key = create_new_key_pair(OTHER.seed).public_key.serialize()


@pytest.mark.parametrize(
    "what",
    [
        "data",
        "topic",
        "sequence",
        "source",
        "another source",
        "no signature",
        "empty signature",
        "no sequence",
        "short sequence",
        "no source",
        "another key",
    ],
)
def test_a_modified_message_is_refused(what: str) -> None:
    message = signed()
    change(message, what)
    with pytest.raises(ValueError, match="message"):
        verify(message)


def source_of_new(message: rpc_pb2.Message) -> str:
    assert message_id(message)
    return verify(message)


@given(st.binary(max_size=200))
def test_any_bytes_that_parse_as_a_message_are_refused(data: bytes) -> None:
    try:
        message = rpc_pb2.Message.FromString(data)
    except Exception:
        return
    with pytest.raises(ValueError, match="message"):
        source_of_new(message)


def test_seen_messages_are_recorded_for_a_minute() -> None:
    seen = SeenCache()
    seen.add(b"first", now=0)
    seen.add(b"second", now=SEEN_S)
    assert b"first" in seen
    seen.add(b"third", now=SEEN_S + 1)
    assert b"first" not in seen
    assert b"second" in seen


def test_the_number_of_seen_messages_is_bounded() -> None:
    seen = SeenCache()
    for number in range(MAX_SEEN + 10):
        seen.add(number.to_bytes(4, "big"), now=1)
    assert (9).to_bytes(4, "big") not in seen
    assert (10).to_bytes(4, "big") in seen


def test_a_message_is_announced_for_three_heartbeats_and_cached_for_five() -> None:
    cache = MessageCache()
    cache.put(b"id", signed())
    for _ in range(2):
        cache.shift()
    assert cache.recent(TOPIC) == [b"id"]
    assert cache.recent("another") == []
    for _ in range(2):
        cache.shift()
    assert cache.recent(TOPIC) == []
    assert cache.get(b"id") is not None
    cache.shift()
    assert cache.get(b"id") is None


def test_the_cache_is_bounded_and_dropped_messages_free_it() -> None:
    cache = MessageCache()
    message = signed(bytes(1024 * 1024))
    for number in range(20):
        cache.put(str(number).encode(), message)
    assert cache.get(b"0") is not None
    assert cache.get(b"19") is None
    for _ in range(5):
        cache.shift()
    cache.put(b"again", message)
    assert cache.get(b"again") is not None
