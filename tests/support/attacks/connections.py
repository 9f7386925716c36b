"""Attacks by connections: silent ones, those without a certificate or with a foreign one, and bogus tokens."""

import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import cycle

import trio

from hypha_network.errors import HyphaNetworkError
from hypha_network.identity import Identity
from support.attacks.raw_peer import Tally, proposal, secure
from support.attacks.target import Target

HELD = 60
"""How many connections one attacker holds open at a time."""
_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, HyphaNetworkError)


@asynccontextmanager
async def _connected(target: Target, tally: Tally) -> AsyncIterator[trio.SocketStream]:
    """Connect to the victim over TCP, and count that."""
    stream = await trio.open_tcp_stream(*target.endpoint)
    tally.attempts += 1
    tally.connections += 1
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def _hold(target: Target, tally: Tally, greeting: bytes) -> None:
    """Hold connections open, and replace each that the victim closes."""

    async def one() -> None:
        while True:
            with suppress(*_ERRORS):
                async with _connected(target, tally) as stream:
                    try:
                        await stream.send_all(greeting)
                        while await stream.receive_some():
                            pass
                    finally:
                        tally.lost += 1
            await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        for _ in range(HELD):
            nursery.start_soon(one)


async def silent_connections(_: Identity, target: Target, tally: Tally) -> None:
    """TCP connections that say nothing."""
    await _hold(target, tally, b"")


async def half_handshakes(_: Identity, target: Target, tally: Tally) -> None:
    """Connections that stop before TLS, with the beginning of a record."""
    await _hold(target, tally, proposal("/tls/1.0.0") + b"\x16\x03\x01")


async def garbage_connections(_: Identity, target: Target, tally: Tally) -> None:
    """Connections that speak something else, one after the other."""
    for garbage in cycle((b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, proposal("/tls/1.0.0") + os.urandom(200), b"")):
        with suppress(*_ERRORS):
            async with _connected(target, tally) as stream:
                tally.sent_bytes += len(garbage)
                await stream.send_all(garbage)
                with trio.move_on_after(0.1):
                    await stream.receive_some()
        await trio.lowlevel.checkpoint()


async def tls_without_a_certificate(_: Identity, target: Target, tally: Tally) -> None:
    """TLS handshakes of a client that has no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    while True:
        with suppress(*_ERRORS):
            async with _connected(target, tally) as stream:
                await stream.send_all(proposal("/tls/1.0.0"))
                await stream.receive_some(len(proposal("/tls/1.0.0")))
                tls = trio.SSLStream(stream, context)
                await tls.do_handshake()
                with trio.move_on_after(0.5):
                    await tls.receive_some(1)
        await trio.lowlevel.checkpoint()


async def complete_handshakes(identity: Identity, target: Target, tally: Tally) -> None:
    """TLS handshakes with the attacker's certificate, foreign or not, and not a byte after them."""

    async def one() -> None:
        while True:
            with suppress(*_ERRORS), trio.move_on_after(20):
                tally.attempts += 1
                secured = await secure(identity, target.address)
                tally.connections += 1
                try:
                    while await secured.read_some():
                        pass
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.2):
                        await secured.close()
            await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(one)


async def bogus_tokens(_: Identity, target: Target, tally: Tally) -> None:
    """HTTP requests with bogus tokens, and connections without any request, at the socket for bridges."""
    head = b"GET /tasks/x/pushes HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer %s\r\n\r\n"

    async def one(number: int) -> None:
        while True:
            with suppress(*_ERRORS):
                connection = trio.socket.socket(socket.AF_UNIX)
                try:
                    await connection.connect(target.connector)
                    tally.attempts += 1
                    tally.connections += 1
                    if number % 4:
                        await connection.send(head % os.urandom(16).hex().encode())
                    while await connection.recv(4096):
                        pass
                finally:
                    tally.lost += 1
                    connection.close()
            await trio.sleep(0.002)

    async with trio.open_nursery() as nursery:
        for number in range(HELD):
            nursery.start_soon(one, number)
