"""The QUIC transport, `/udp/PORT/quic-v1`: finds the way to a peer. `quic_connection` does the handshake.

A listener keeps nothing of a peer before the peer has proved that it receives at its address. Until then every answer
is shorter than its cause, so that nobody can have this node flood others.
"""

import os
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import trio
from qh3._hazmat import pull_quic_header
from qh3.quic.packet import (
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
)

from hypha_network.errors import DialError, NetworkError
from hypha_network.failures import report_failure
from hypha_network.wire.addresses import Address, Network, TransportName
from hypha_network.wire.processor import CpuBudget, charged_to
from hypha_network.wire.resolver import CONNECT_TIMEOUT_S, resolve
from hypha_network.wire.retry_tokens import RetryTokens
from hypha_network.wire.transport import Accept
from hypha_network.wire.udp import CONNECTION_ID_BYTES, Endpoint, Remote, UdpPath

ACCEPT_CPU_SHARE: Final = 0.1
"""The part of one core that datagrams of unknown connections may take. They wait in a short queue, or are dropped."""
MAX_QUEUED: Final = 256
PUNCH_BYTES: Final = 64
PUNCH_PAUSES_S: Final = (0.01, 0.2)
"""The pauses between datagrams that open a NAT, as the specification of DCUtR has them."""
_MIN_INITIAL_BYTES: Final = 1200
_VERSION: Final = QuicProtocolVersion.VERSION_1


class Quic:
    """Connect and listen over QUIC. The sockets live in the nursery.

    A node dials from a listening socket, so that every peer observes the address to which a NAT maps it. If it listens
    at no suitable address, it dials from a socket of its own.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._listening: list[Endpoint] = []
        self._dialling: dict[socket.AddressFamily, Endpoint] = {}

    async def connect(
        self, address: Address, excluded: Sequence[Network] = (), listening: Sequence[Address] = ()
    ) -> UdpPath:
        """Find the way to an address outside the excluded networks; DialError says why there is none."""
        del listening  # this node dials every address from a listening port
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                hosts, left_out = await resolve(address, excluded)
        except trio.TooSlowError:
            raise DialError(f"{address}: no answer of the name server within {CONNECT_TIMEOUT_S:g} s") from None
        except (OSError, UnicodeError) as error:
            raise DialError(f"{address}: {getattr(error, 'strerror', None) or error}") from error
        if not hosts:
            raise DialError(f"{address}: {'; '.join(left_out) or 'no such host'}")
        path, *path.alternatives = [UdpPath(self._endpoint(host), (host, address.port), address) for host in hosts]
        return path

    def _endpoint(self, host: str) -> Endpoint:
        if (listener := self._listener(host)) is not None:
            return listener
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        if family not in self._dialling:
            self._dialling[family] = endpoint = Endpoint(_socket(family, None))
            self._nursery.start_soon(endpoint.run)
        return self._dialling[family]

    def _listener(self, host: str) -> Endpoint | None:
        suitable = (endpoint for endpoint in self._listening if endpoint.leads_to(host))
        return next(suitable, None)

    async def punch(self, address: Address, listening: Sequence[Address], *, is_initiator: bool) -> UdpPath:
        """Return the way to the IP address of a peer, or let the peer in that connects from there.

        A node that is not the initiator sends random datagrams until it is cancelled. They make its NAT take those of
        the peer for answers. The peer's connection arrives at the listener.
        """
        del listening
        if (endpoint := self._listener(address.host)) is None:
            raise DialError(f"{address}: this node listens on no address from which to connect there")
        remote = (address.host, address.port)
        while not is_initiator:
            endpoint.send_now(os.urandom(PUNCH_BYTES), remote)
            await trio.sleep(random.uniform(*PUNCH_PAUSES_S))  # noqa: S311
        return UdpPath(endpoint, remote, address)

    async def listen(
        self, address: Address, accept: Accept, make_room: Callable[[], None], nursery: trio.Nursery
    ) -> list[Address]:
        """Accept connections in the nursery from now on; NetworkError if listening is impossible."""
        del make_room  # a connection takes no descriptor
        try:
            found = await trio.socket.getaddrinfo(address.host, address.port, address.family, socket.SOCK_DGRAM)
            sockets = [_socket(family, sockaddr) for family, *_, sockaddr in found]
        except OSError as error:
            raise NetworkError(
                f"cannot listen on {address}: {error.strerror or error}; choose another listen address"
            ) from error
        listeners = [Listener(sock, accept, nursery) for sock in sockets]
        for listener in listeners:
            self._listening.append(listener.endpoint)
            nursery.start_soon(listener.run)
        return [replace(address, port=listener.endpoint.local_port, peer_id=None) for listener in listeners]


class Listener:
    """Answers the first datagrams of connections."""

    def __init__(self, sock: socket.socket, accept: Accept, nursery: trio.Nursery) -> None:
        self.endpoint = Endpoint(sock, self._queue)
        self._accept = accept
        self._nursery = nursery
        self._tokens = RetryTokens()
        self._waiting: deque[tuple[bytes, Remote]] = deque(maxlen=MAX_QUEUED)
        self._arrived = trio.Event()

    async def run(self) -> None:
        """Accept connections without end."""
        self._nursery.start_soon(self.endpoint.run)
        budget = CpuBudget(ACCEPT_CPU_SHARE, burst_s=0.05)
        with charged_to(budget):
            while True:
                await self._arrived.wait()
                await budget.turn()
                datagram, remote = self._waiting.popleft()
                try:
                    self._answer(datagram, remote)
                except Exception as error:  # a peer is to blame, and must not end the listener
                    report_failure(remote[0], "the first datagram of a connection", error)
                if not self._waiting:
                    self._arrived = trio.Event()

    def _queue(self, datagram: bytes, remote: Remote) -> None:
        if len(datagram) >= _MIN_INITIAL_BYTES and datagram[0] & 0x80:
            self._waiting.append((datagram, remote))
            self._arrived.set()

    def _answer(self, datagram: bytes, remote: Remote) -> None:
        """Answer a datagram of an unknown connection, or begin the connection that it asks for."""
        try:
            version, kind, _, destination, source, token, *_ = pull_quic_header(datagram, 0, CONNECTION_ID_BYTES)
        except ValueError:
            return
        if version != _VERSION:
            if version:
                self.endpoint.send_now(
                    encode_quic_version_negotiation(
                        source_cid=destination, destination_cid=source, supported_versions=[_VERSION]
                    ),
                    remote,
                )
        elif kind == QuicPacketType.INITIAL and not token:
            fresh = os.urandom(CONNECTION_ID_BYTES)
            retry = encode_quic_retry(
                version=_VERSION,
                source_cid=fresh,
                destination_cid=source,
                original_destination_cid=destination,
                retry_token=self._tokens.make(remote, destination, fresh),
            )
            self.endpoint.send_now(retry, remote)
        elif kind == QuicPacketType.INITIAL and (first := self._tokens.check(token, remote, destination)):
            self._begin(datagram, remote, first, destination)

    def _begin(self, datagram: bytes, remote: Remote, first: bytes, current: bytes) -> None:
        if current in self.endpoint.paths:  # the connection began with the datagram before this one
            self.endpoint.paths[current].deliver(datagram)
            self.endpoint.paths[current].wake()
            return
        host = remote[0].split("%")[0]
        address = Address("ip6" if ":" in host else "ip4", host, remote[1], transport=TransportName.QUIC)
        path = UdpPath(self.endpoint, remote, address, first_ids=(first, current))
        path.add_id(current)
        path.deliver(datagram)
        path.wake()
        self._nursery.start_soon(self._serve, path)

    async def _serve(self, path: UdpPath) -> None:
        try:
            await self._accept(path)
        finally:
            if not path.owned:  # a connection closes its path itself, after its last data
                path.detach()


def _socket(family: int, sockaddr: Remote | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr or ("", 0))
    except OSError:
        sock.close()
        raise
    return sock
