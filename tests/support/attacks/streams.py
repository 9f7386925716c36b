"""Attacks by streams and their frames: storms, stalls, garbage, and requests that are meant to cost much."""

import os
from itertools import cycle
from uuid import UUID, uuid4

import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.relay.circuit_v2.pb import circuit_pb2

from hypha_messages import cbor
from hypha_messages.api import API
from hypha_messages.health import HEALTH
from hypha_messages.progress import PROGRESS
from hypha_messages.streams import PUSH
from hypha_messages.types import peer_id_to_bytes
from hypha_network.services.identify import IDENTIFY
from hypha_network.services.identify import PUSH as IDENTIFY_PUSH
from hypha_network.services.kademlia import PROTOCOL as KADEMLIA
from hypha_network.services.kademlia_messages import Kind, Message, Record, StoredRecord
from hypha_network.services.kademlia_messages import encode as encode_kademlia
from hypha_network.services.relay import HOP, STOP
from hypha_network.wire.multistream import encode_varint, prefixed
from hypha_network.wire.yamux_frames import DATA, FIN, HEADER, PING, RST, SYN, VERSION, WINDOW_UPDATE
from support.attacks.raw_peer import RawPeer, data_frame, frame, proposal
from support.attacks.target import Target
from support.cbor_bombs import BOMBS
from support.jobs import train_spec

REQUESTS = (API.id, HEALTH.id, PROGRESS.id)
STREAM_BYTES = 250_000
"""What fits into the initial window of a stream, with the name of its protocol."""


async def bombs_in_requests(peer: RawPeer, _: Target) -> None:
    """CBOR that is meant to stop a decoder, as a request of each protocol."""
    for number, bomb in enumerate(cycle(BOMBS.values())):
        stream_id = await peer.open(REQUESTS[number % len(REQUESTS)])
        await peer.send(stream_id, bomb[: 1 << 20])
        await peer.end(stream_id)


async def garbage_in_requests(peer: RawPeer, _: Target) -> None:
    """Requests that are no CBOR, or empty, or unknown."""
    bodies = cycle((b"\xff" * 1000, b"\x81" * 50_000, b"\xbf" * 50_000, b"", b"\xa0\xa0", os.urandom(1000)))
    protocols = cycle((*REQUESTS, PUSH))
    while True:
        await peer.write(b"".join(peer.opening(next(protocols), next(bodies)) for _ in range(16)), 16)


async def too_long_requests(peer: RawPeer, _: Target) -> None:
    """Requests above the limit of 1 MiB."""
    protocols = cycle(REQUESTS)
    while True:
        stream_id = await peer.open(next(protocols))
        await peer.send(stream_id, bytes(1 << 20), 0)
        await peer.send(stream_id, bytes(1 << 18))
        await peer.end(stream_id)


async def large_specifications(peer: RawPeer, _: Target) -> None:
    """Dispatches of 990 KB, without a lease: with long names, and with many."""
    spec = train_spec().model_dump()
    files = spec["executor"]["config"]["model"]["artifact"]["filenames"]
    bodies = []
    for names in (["n" * 1000] * 985, ["n" * 40] * 23_000):
        files[:] = names
        bodies.append(cbor.dumps({"DispatchJob": {"id": uuid4().bytes, "spec": spec}}))
    for body in cycle(bodies):
        stream_id = await peer.open(API.id)
        await peer.send(stream_id, body)
        await peer.end(stream_id)


async def leases_of_others(peer: RawPeer, target: Target) -> None:
    """Renewals of, and dispatches under, leases that others hold or nobody does."""
    spec = train_spec().model_dump()
    leases = cycle([UUID(lease).bytes for lease in target.leases] + [uuid4().bytes for _ in range(7)])
    while True:
        renewals = [cbor.dumps({"RenewLease": {"id": next(leases)}}) for _ in range(8)]
        dispatch = cbor.dumps({"DispatchJob": {"id": next(leases), "spec": spec}})
        await peer.write(b"".join(peer.opening(API.id, body) for body in (*renewals, dispatch)), 9)


async def unasked_pushes(peer: RawPeer, _: Target) -> None:
    """Pushes that no job expects."""
    bodies = cycle((b"", b"\x05", (1 << 60).to_bytes(8, "little"), bytes(64 * 1024)))
    while True:
        await peer.write(b"".join(peer.opening(PUSH, next(bodies)) for _ in range(8)), 8)


async def negotiations(peer: RawPeer, _: Target) -> None:
    """Negotiations that never end, or propose what nobody speaks."""
    unknown = proposal("/unknown") + b"".join(prefixed(b"/unknown/%d\n" % n) for n in range(40))
    for body in cycle((b"\xff" * 100, encode_varint(1 << 31), unknown, prefixed(b"/multistream/1.0.0"), b"\x00" * 999)):
        frames = [data_frame(peer.new_stream_id(), body, SYN | FIN) for _ in range(8)]
        await peer.write(b"".join(frames), 8)


async def streams_opened_and_reset(peer: RawPeer, _: Target) -> None:
    """Streams that are reset as soon as they are open."""
    protocols = cycle((*REQUESTS, PUSH, KADEMLIA))
    while True:
        parts = []
        for _ in range(100):
            parts.append(peer.opening(next(protocols), end=False))
            parts.append(frame(WINDOW_UPDATE, RST, peer.new_stream_id() - 2, 0))
        await peer.write(b"".join(parts), 100)


async def pings_and_window_updates(peer: RawPeer, _: Target) -> None:
    """Frames without data: pings, updates of a window, of unknown streams, and empty data."""
    stream_id = await peer.open(HEALTH.id)
    pings = b"".join(frame(PING, SYN, 0, n) for n in range(500))
    updates = frame(WINDOW_UPDATE, 0, stream_id, 0) * 500 + frame(DATA, 0, stream_id, 0) * 500
    while True:
        await peer.write(pings, 500)
        await peer.write(updates, 1000)


async def broken_frames(peer: RawPeer, _: Target) -> None:
    """Frames for which the victim closes the connection, so that the attacker must connect again."""
    broken = (
        HEADER.pack(9, 9, 9, 9, 9),
        HEADER.pack(VERSION, DATA, 0, 77_777, 10),
        HEADER.pack(VERSION, DATA, SYN, 1001, 0xFFFFFFFF),
    )
    await peer.write(broken[os.urandom(1)[0] % len(broken)], 1)
    await trio.sleep(1)  # until the victim has closed the connection


async def stalled_streams(peer: RawPeer, _: Target) -> None:
    """Streams by the hundred whose windows are full, and that never end."""
    for number in range(256):
        body = proposal((*REQUESTS, PUSH)[number % 4]) + bytes(STREAM_BYTES)
        await peer.write(data_frame(peer.new_stream_id(), body, SYN), 1)
    await trio.sleep_forever()


async def byte_by_byte(peer: RawPeer, _: Target) -> None:
    """Requests of which each frame has one byte."""
    body = proposal(API.id) + bytes(2000)
    while True:
        stream_id = peer.new_stream_id()
        frames = [data_frame(stream_id, body[n : n + 1], SYN if not n else 0) for n in range(len(body))]
        await peer.write(b"".join(frames) + frame(WINDOW_UPDATE, FIN, stream_id, 0), 1)


async def identify_floods(peer: RawPeer, _: Target) -> None:
    """Announcements of hundreds of addresses and protocols, and questions for the node's own."""
    addresses = [b"\x04" + bytes((10, n >> 8, n & 255, 1)) + b"\x06\x0f\xa1" for n in range(2000)]
    message = Identify(listen_addrs=addresses, protocols=[f"/protocol/{n}" for n in range(1000)])
    announcement = prefixed(message.SerializeToString())
    while True:
        questions = b"".join(peer.opening(IDENTIFY) for _ in range(4))
        await peer.write(peer.opening(IDENTIFY_PUSH, announcement) + questions, 5)


async def kademlia_floods(peer: RawPeer, _: Target) -> None:
    """Lookups and records of random keys, many on each stream."""
    while True:
        key = os.urandom(32)
        record = StoredRecord(key, Record(os.urandom(4096), peer.peer_id))
        messages = [Message(Kind.FIND_NODE, os.urandom(32)) for _ in range(50)]
        messages += [Message(Kind.GET_VALUE, key), Message(Kind.PUT_VALUE, key, record)]
        body = b"".join(prefixed(encode_kademlia(message)) for message in messages)
        await peer.write(peer.opening(KADEMLIA, body), len(messages))


async def relay_reservations(peer: RawPeer, _: Target) -> None:
    """Reservations of a relay's slots."""
    request = prefixed(circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.RESERVE).SerializeToString())
    while True:
        await peer.write(b"".join(peer.opening(HOP, request) for _ in range(8)), 8)


async def relay_circuits(peer: RawPeer, target: Target) -> None:
    """Connections to the node through its gateway, which say nothing."""
    node = circuit_pb2.PeerId(id=peer_id_to_bytes(target.address.rpartition("/")[2]))
    message = circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.CONNECT, peer=node)
    while True:
        for _ in range(4):
            await peer.write(peer.opening(HOP, prefixed(message.SerializeToString()), end=False), 1)
        await trio.sleep(0.05)


async def announced_circuits(peer: RawPeer, target: Target) -> None:
    """Circuits that a peer announces as if it were a relay: from others, and then nothing or garbage."""
    sources = cycle(target.seeds)
    for number in cycle(range(100)):
        source = circuit_pb2.PeerId(id=peer_id_to_bytes(next(sources)))
        message = circuit_pb2.StopMessage(type=circuit_pb2.StopMessage.CONNECT, peer=source)
        body = prefixed(message.SerializeToString()) + (b"" if number % 2 else b"\xff" * 100)
        await peer.write(peer.opening(STOP, body, end=False), 1)


async def unread_answers(peer: RawPeer, _: Target) -> None:
    """Requests with answers that the peer never grants a window for, because it resets nothing and reads nothing."""
    body = prefixed(encode_kademlia(Message(Kind.FIND_NODE, os.urandom(32))))
    for protocol in cycle((KADEMLIA, "/ipfs/ping/1.0.0")):
        await peer.write(peer.opening(protocol, body * 2000, end=False), 2000)
