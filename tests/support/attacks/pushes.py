"""Attacks by a peer that the honest job names as a sender: header bombs, slow pushes and pushes that break off."""

import json
import struct
from itertools import cycle

import trio

from hypha_messages.streams import PUSH
from hypha_network.errors import NetworkError
from support.attacks.raw_peer import RawPeer
from support.attacks.target import Target

MIB = 1024 * 1024


def safetensors_header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header_bombs() -> list[bytes]:
    entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}
    many = json.dumps({f"t{n}": entry for n in range(30_000)}).encode()
    return [
        safetensors_header(b"[" * (2 * MIB)),
        safetensors_header(b'{"a":' * (400 * 1024)),
        safetensors_header(many[: 2 * MIB].ljust(2 * MIB)),
        safetensors_header(b'{"a":[' + b"[]," * (600 * 1024) + b"[]]}"),
        safetensors_header(b"{" + b",".join(b'"%d":{}' % n for n in range(150_000)) + b"}"),
        struct.pack("<Q", 92 * MIB) + b'{"a":' + b"{" * (4 * MIB),
        struct.pack("<Q", 1 << 62) + b"{}",
    ]


async def header_pushes(peer: RawPeer, _: Target) -> None:
    """Pushes whose SafeTensors header is huge, deep or has far too many members."""
    for bomb in cycle(header_bombs()):
        try:
            stream_id = await peer.open(PUSH)
            await peer.send(stream_id, bomb)
            await peer.end(stream_id)
        except NetworkError:  # the node has reset this push
            await trio.sleep(0.01)


async def slow_pushes(peer: RawPeer, _: Target) -> None:
    """Pushes that arrive at a byte a second."""
    body = safetensors_header(b'{"a":{}}').ljust(4096, b" ")
    streams = [await peer.open(PUSH) for _ in range(32)]
    for position in range(len(body)):
        for stream_id in list(streams):
            try:
                await peer.send(stream_id, body[position : position + 1])
            except NetworkError:  # the node has reset this push
                streams[streams.index(stream_id)] = await peer.open(PUSH)
        await trio.sleep(1)


async def broken_pushes(peer: RawPeer, _: Target) -> None:
    """Pushes that stop in the middle, of a header or of megabytes."""
    bodies = cycle((b"", struct.pack("<Q", 60) + b'{"x":', safetensors_header(b"{}") + bytes(8 * MIB), bytes(1000)))
    for number, body in enumerate(bodies):
        try:
            stream_id = await peer.open(PUSH)
            with trio.move_on_after(0.5):
                await peer.send(stream_id, body)
            if number % 2:
                await peer.end(stream_id)
        except NetworkError:
            await trio.sleep(0.01)


async def large_pushes(peer: RawPeer, _: Target) -> None:
    """Complete pushes that fill the job's storage as fast as the node takes them."""
    body = safetensors_header(b'{"a":{"dtype":"U8","shape":[8388608],"data_offsets":[0,8388608]}}') + bytes(8 * MIB)
    while True:
        try:
            stream_id = await peer.open(PUSH)
            await peer.send(stream_id, body)
            await peer.end(stream_id)
        except NetworkError:
            await trio.sleep(0.01)
