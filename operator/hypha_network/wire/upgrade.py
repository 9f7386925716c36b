"""Secures and muxes raw connections, so that peers without a certificate cost this node little."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

import trio

from hypha_contracts import descriptors
from hypha_network.errors import DialError, HandshakeError, NetworkError
from hypha_network.failures import report_failure
from hypha_network.fairness import FairPlaces
from hypha_network.wire import multistream
from hypha_network.wire.addresses import source_of
from hypha_network.wire.backlog import Backlog
from hypha_network.wire.muxer import Muxed
from hypha_network.wire.processor import CpuBudget, CpuShare, charged_to
from hypha_network.wire.quic_connection import QuicConnection
from hypha_network.wire.race import AllFailedError, race
from hypha_network.wire.tls import PROTOCOL_ID as TLS
from hypha_network.wire.tls import TlsTransport
from hypha_network.wire.transport import Link, RawConnection
from hypha_network.wire.udp import UdpPath
from hypha_network.wire.yamux import PROTOCOL_ID as YAMUX
from hypha_network.wire.yamux import Yamux

UPGRADE_TIMEOUT_S = 15.0
MAX_UNAUTHENTICATED: Final = 256
"""Maximum number of inbound connections, direct and relayed, that have not completed TLS and the muxer's negotiation.

At the limit, the source with most of them loses its oldest. A source is an IPv4 address, an IPv6 /64 or a relay.
"""
MAX_UNAUTHENTICATED_PER_SOURCE: Final = 128
CPU_SHARE: Final = 0.15
"""The part of one core that the handshakes of inbound connections may take together."""
MAX_CPU_SHARES: Final = 4096
"""For how many peers, besides those that are connected, this node remembers the processing time that they used."""


def _places() -> FairPlaces:
    limit = min(MAX_UNAUTHENTICATED, descriptors.limit() // 8)  # most descriptors stay for other uses
    return FairPlaces(limit, min(MAX_UNAUTHENTICATED_PER_SOURCE, limit))


@dataclass(eq=False)
class Upgrader:
    """Upgrades the raw connections of a node."""

    tls: TlsTransport
    unauthenticated: FairPlaces = field(default_factory=_places)
    _backlog: Backlog = field(default_factory=Backlog)
    _handshakes: CpuBudget = field(default_factory=lambda: CpuBudget(CPU_SHARE, burst_s=0.05))
    _cpu_shares: WeakValueDictionary[str, CpuShare] = field(default_factory=WeakValueDictionary)
    """By peer. Connections keep the shares of their peers alive."""
    _recent_shares: OrderedDict[str, CpuShare] = field(default_factory=OrderedDict)

    async def upgrade(self, link: Link, expected: str | None) -> Muxed:
        """Secure and mux a connection. HandshakeError if TLS fails, DialError if anything else does.

        Args:
            link: the connection; it is closed if the upgrade fails.
            expected: the peer that must answer; with None, every peer of the network may.
        """
        if link.is_initiator:
            return await self._within_time(link, expected)
        source = source_of(link.address)
        link.turn = self._handshakes.turn_of(source)
        with charged_to(self._handshakes), self.unauthenticated.hold(source):
            muxed = await self._within_time(link, expected)
            link.turn = None
            return muxed
        raise DialError(f"{link.address} did not complete the handshake before another connection needed its slot")

    async def _within_time(self, link: Link, expected: str | None) -> Muxed:
        try:
            with trio.fail_after(UPGRADE_TIMEOUT_S):
                return await self._negotiate(link, expected)
        except BaseException as error:
            await link.close()
            if isinstance(error, trio.TooSlowError):
                raise DialError(f"{link.address} did not complete the handshake in {UPGRADE_TIMEOUT_S:g} s") from None
            if isinstance(error, HandshakeError) or not isinstance(error, Exception):
                raise
            if not isinstance(error, NetworkError):
                report_failure(source_of(link.address), "the handshake", error)
            raise DialError(f"{link.address} did not complete the handshake: {error}") from error

    async def _negotiate(self, link: Link, expected: str | None) -> Muxed:
        if isinstance(link, UdpPath):
            return await self._quic(link, expected)
        if not isinstance(link, RawConnection):
            raise TypeError(f"{link} is neither a raw connection nor a path for datagrams")
        return await self._tls_and_yamux(link, expected)

    async def _quic(self, path: UdpPath, expected: str | None) -> QuicConnection:
        connections = [QuicConnection(way, self.tls, expected, self._backlog) for way in [path, *path.alternatives]]
        attempts = [connection.handshake for connection in connections]
        try:
            connection = await race(attempts, NetworkError, QuicConnection.drop)
        except AllFailedError as error:
            raise error.failures[0] from error
        connection.cpu_share = self.cpu_share(connection.peer_id)
        return connection

    async def _tls_and_yamux(self, raw: RawConnection, expected: str | None) -> Yamux:
        if raw.is_initiator:
            await multistream.select(raw, [TLS])
            secure = await self.tls.secure(raw, expected)
            await multistream.select(secure, [YAMUX])
        else:
            await multistream.accept(raw, {TLS})
            secure = await self.tls.secure(raw)
            await multistream.accept(secure, {YAMUX})
        return Yamux(secure, secure.peer_id, backlog=self._backlog, cpu_share=self.cpu_share(secure.peer_id))

    def cpu_share(self, peer_id: str) -> CpuShare:
        """Return the processing time that a peer has used lately."""
        share = self._cpu_shares.setdefault(peer_id, CpuShare())
        self._recent_shares[peer_id] = share
        self._recent_shares.move_to_end(peer_id)
        if len(self._recent_shares) > MAX_CPU_SHARES:
            self._recent_shares.popitem(last=False)
        return share
