"""A peer that speaks QUIC by qh3 alone, so that it can break the rules of this network."""

import secrets
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from qh3.quic import events
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.tls import SignatureAlgorithm

from hypha_network.wire.addresses import Address
from support.networks import DEADLINE_S


class QuicPeer:
    """A client without a certificate, whose datagrams a test sends one by one."""

    def __init__(self, to: Address, **settings: object) -> None:
        self.to = (to.host, to.port)
        self.socket = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.quic = QuicConnection(
            configuration=QuicConfiguration(
                verify_mode=ssl.CERT_NONE,
                signature_algorithms=[SignatureAlgorithm.ED25519, SignatureAlgorithm.ECDSA_SECP256R1_SHA256],
                **settings,  # type: ignore[arg-type]
            )
        )
        self.events: list[events.QuicEvent] = []

    async def shake_hands(self) -> None:
        """Exchange datagrams until the handshake ends in one way or another."""
        self.quic.connect(self.to, trio.current_time())
        while not any(isinstance(event, events.ConnectionTerminated) for event in self.events):
            await self.flush()
            datagram, _ = await self.socket.recvfrom(65536)
            self.quic.receive_datagram(datagram, self.to, trio.current_time())
            while event := self.quic.next_event():
                self.events.append(event)
            if self.quic._close_event is not None:  # the event itself comes only after a while
                self.events.append(self.quic._close_event)

    async def flush(self) -> None:
        for datagram, _ in self.quic.datagrams_to_send(trio.current_time()):
            await self.socket.sendto(datagram, self.to)

    def first_flight(self) -> list[bytes]:
        """Return the datagrams that begin a connection."""
        self.quic.connect(self.to, trio.current_time())
        return [datagram for datagram, _ in self.quic.datagrams_to_send(trio.current_time())]

    async def answer_to(self, datagram: bytes) -> bytes:
        """Send a datagram and return the answer."""
        await self.socket.sendto(datagram, self.to)
        with trio.fail_after(DEADLINE_S):
            return (await self.socket.recvfrom(65536))[0]

    async def ignored(self, datagram: bytes) -> bool:
        """Send a datagram, then one that is answered. Return whether the first answer is to the latter."""
        await self.socket.sendto(datagram, self.to)
        name = secrets.token_bytes(8)
        return name in await self.answer_to(bytes.fromhex("c0babababa08") + bytes(8) + b"\x08" + name + bytes(1200))


@asynccontextmanager
async def quic_peer(to: Address, **settings: object) -> AsyncIterator[QuicPeer]:
    peer = QuicPeer(to, **settings)
    with peer.socket:
        yield peer


def garbage(count: int) -> list[bytes]:
    """Return random datagrams; every second one claims to begin a connection."""
    found = []
    for index in range(count):
        data = bytearray(secrets.token_bytes(1200 if index % 2 else secrets.randbelow(1400) + 1))
        if index % 2:
            data[:5] = b"\xc0\x00\x00\x00\x01"
        found.append(bytes(data))
    return found
