"""A sender or receiver over a slow path, through a node of this project or a TCP connection of the kernel.

`serve CERT KEY TRUST LISTEN_ADDRESS` writes the address to dial. `push CERT KEY TRUST ADDRESS SECONDS` pushes there.
`kernel-serve HOST PORT` and `kernel-push HOST PORT SECONDS CONGESTION_CONTROL` do the same without a node. Those that
push write the bytes per second that the receiver confirmed.
"""

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import trio

from hypha_network.identity import Identity
from hypha_network.network import NetworkConfig, open_network
from hypha_network.wire.streams import Stream

PUSH = "/test/push"
_PART = bytes(256 * 1024)


def write(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def serve(cert: str, key: str, trust: str, listen: str) -> None:
    async def take(_: str, stream: Stream) -> None:
        size = 0
        while data := await stream.receive_some():
            size += len(data)
        await stream.send_all(size.to_bytes(8))
        await stream.send_eof()

    async with _node(cert, key, trust, listen) as network:
        network.handle_stream(PUSH, take)
        (address,) = network.addresses()
        write(address=address)
        await trio.sleep_forever()


async def push(cert: str, key: str, trust: str, address: str, seconds: str) -> None:
    async with _node(cert, key, trust) as network:
        peer_id = await network.dial(address)
        stream = await network.open_stream(peer_id, PUSH)
        began_s = time.monotonic()
        while time.monotonic() - began_s < float(seconds):
            await stream.send_all(_PART)
        await stream.send_eof()
        confirmed = b""
        while data := await stream.receive_some():
            confirmed += data
        write(bytes_per_s=int.from_bytes(confirmed) / (time.monotonic() - began_s))


def _node(cert: str, key: str, trust: str, *listen: str) -> Any:
    identity = Identity.load(Path(cert), Path(key), Path(trust))
    return open_network(identity, NetworkConfig(listen_addresses=listen, exclude_cidr=()))


def kernel_serve(host: str, port: str) -> None:
    with socket.create_server((host, int(port))) as listener:
        write(address=host)
        connection, _ = listener.accept()
        with connection:
            size = 0
            while data := connection.recv(1024 * 1024):
                size += len(data)
            connection.sendall(size.to_bytes(8))


def kernel_push(host: str, port: str, seconds: str, congestion_control: str) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion_control.encode())
        connection.connect((host, int(port)))
        began_s = time.monotonic()
        while time.monotonic() - began_s < float(seconds):
            connection.sendall(_PART)
        connection.shutdown(socket.SHUT_WR)
        confirmed = b""
        while data := connection.recv(8):
            confirmed += data
        write(bytes_per_s=int.from_bytes(confirmed) / (time.monotonic() - began_s))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    match command:
        case "serve":
            trio.run(serve, *arguments)
        case "push":
            trio.run(push, *arguments)
        case "kernel-serve":
            kernel_serve(*arguments)
        case "kernel-push":
            kernel_push(*arguments)
