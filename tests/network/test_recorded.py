"""The wire against bytes that the Rust nodes sent: what they say is understood, and what we say is the same."""

import time

from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.pubsub.pb import rpc_pb2
from libp2p.relay.circuit_v2.pb import circuit_pb2

from hypha_messages import advertisement
from hypha_network.services.gossip_messages import message_id, verify
from hypha_network.services.kademlia_messages import Kind, Message, Record, StoredRecord, decode, encode
from hypha_network.services.relay import OK, peer_of
from hypha_network.wire import addresses
from support import recorded_network as recorded

GATEWAY = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"
DATA_NODE = "12D3KooWBkAZ52FV28vNpUsNcSLLfdTZdhph8Vhb2w5hCENAinpB"
SCHEDULER = "12D3KooWAHqobUfygpAfTG7VquHrCg6uV4o8rPazF13heu8496AX"
WORKER = "12D3KooWLboRs5cNcvptM4NbJkUo9zeswncUeJWVEQfcj5NHtboy"


def test_a_recorded_identify_message_of_a_gateway_is_parsed() -> None:
    said = Identify.FromString(recorded.IDENTIFY)
    assert said.protocol_version == "/hypha-identify/0.0.1"
    assert list(map(str, addresses.usable(said.listen_addrs))) == ["/ip4/127.0.0.1/tcp/24001"]
    assert {"/ipfs/kad/1.0.0", "/meshsub/1.1.0", "/libp2p/circuit/relay/0.2.0/hop"} <= set(said.protocols)


def test_a_recorded_advertisement_verifies_as_its_scheduler() -> None:
    (message,) = rpc_pb2.RPC.FromString(recorded.GOSSIP).publish
    assert verify(message) == SCHEDULER
    assert message_id(message) == f"{SCHEDULER}{int.from_bytes(message.seqno, 'big')}".encode()
    assert list(message.topicIDs) == [advertisement.TOPIC]
    request = advertisement.decode(message.data)
    (executor,) = request.spec.executor
    assert (executor.class_, executor.name) == ("aggregate", "parameter-server")
    assert request.timeout.timestamp < time.time()


def test_a_recorded_gossip_message_is_forwarded_byte_for_byte() -> None:
    assert rpc_pb2.RPC.FromString(recorded.GOSSIP).SerializeToString() == recorded.GOSSIP


def test_a_recorded_lookup_answer_of_a_gateway_is_parsed() -> None:
    message = decode(recorded.FOUND_NODES)
    assert message.kind is Kind.FIND_NODE
    ((peer_id, known),) = message.closer
    assert peer_id == DATA_NODE
    direct, relayed = map(str, known)
    assert direct == f"/ip4/127.0.0.1/tcp/44837/p2p/{DATA_NODE}"
    assert relayed == f"/ip4/127.0.0.1/tcp/24001/p2p/{GATEWAY}/p2p-circuit/p2p/{DATA_NODE}"


def test_a_record_that_a_gateway_stores_is_parsed() -> None:
    message = decode(recorded.FOUND_RECORD)
    assert message.record == StoredRecord(b"digits", Record(b'{"num_slices":3}', DATA_NODE))


def test_a_gateways_confirmation_of_our_record_is_parsed() -> None:
    message = decode(recorded.RECORD_TAKEN)
    assert message.kind is Kind.PUT_VALUE
    assert message.record == StoredRecord(b"mine", Record(b'{"num_slices":1}', None))


def test_a_record_is_published_with_the_fields_that_a_data_node_sends() -> None:
    message = decode(recorded.PUT_VALUE)
    assert message == Message(
        Kind.PUT_VALUE, b"digits", StoredRecord(b"digits", Record(b'{"num_slices":3}', DATA_NODE), 172799)
    )
    ours = encode(message)
    for part in (bytes.fromhex("d22926") + recorded.PUT_VALUE.partition(bytes.fromhex("d22926"))[2], b"\x0a\x06digits"):
        assert part in ours


def test_a_lookup_of_a_peer_is_sent_with_the_same_fields() -> None:
    message = decode(recorded.FIND_NODE)
    assert message == Message(Kind.FIND_NODE, key=message.key)
    assert sorted(encode(message)) == sorted(recorded.FIND_NODE)  # the same fields, in another order


def test_a_reservation_is_requested_in_the_same_bytes() -> None:
    assert circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE).SerializeToString() == recorded.RESERVE


def test_a_reservation_that_a_gateway_grants_is_parsed() -> None:
    answer = circuit_pb2.HopMessage.FromString(recorded.RESERVED)
    assert (answer.type, answer.status) == (circuit_pb2.HopMessage.STATUS, OK)
    assert answer.reservation.expire > 1_700_000_000
    assert list(map(str, addresses.usable(answer.reservation.addrs))) == [f"/ip4/127.0.0.1/tcp/24001/p2p/{GATEWAY}"]


def test_a_circuit_is_requested_announced_and_accepted_in_the_same_bytes() -> None:
    asked = circuit_pb2.HopMessage.FromString(recorded.HOP_CONNECT)
    assert (asked.type, peer_of(asked)) == (circuit_pb2.HopMessage.CONNECT, WORKER)
    announced = circuit_pb2.StopMessage.FromString(recorded.STOP_CONNECT)
    assert (announced.type, peer_of(announced)) == (circuit_pb2.StopMessage.CONNECT, SCHEDULER)
    accepted = circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.STATUS, status=OK)  # type: ignore[arg-type]
    assert accepted.SerializeToString() == recorded.STOP_CONNECTED
