"""Multiaddresses: parse them, select the usable ones, and find those of this machine."""

import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import chain, pairwise

import psutil
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from hypha_messages.types import peer_id_to_bytes

Network = IPv4Network | IPv6Network

_HOSTS = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}
_MAX_LENGTH = 1024


class TransportName(StrEnum):
    """The transports of this node, as an address names them. `hypha_network.wire.transports` implements them."""

    TCP = "tcp"


class AddressError(ValueError):
    """A text is not an address that this node can use; the message says which text and why."""


class UnsupportedTransport(AddressError):  # noqa: N818 - the address is valid; a node with more transports can use it
    """A valid address names a transport that this node does not have, for example QUIC."""


@dataclass(frozen=True)
class Address:
    """A host and port, and optionally the peer there and the relay in between.

    `/dns4/host/tcp/4001/p2p/A` names the peer A. `/dns4/host/tcp/4001/p2p/R/p2p-circuit/p2p/A` names the peer A behind
    the relay R.
    """

    protocol: str
    host: str
    port: int
    peer_id: str | None = None
    relay: str | None = None
    transport: TransportName = TransportName.TCP

    def __str__(self) -> str:
        text = f"/{self.protocol}/{self.host}/{self.transport}/{self.port}"
        if self.relay is not None:
            text += f"/p2p/{self.relay}/p2p-circuit"
        return f"{text}/p2p/{self.peer_id}" if self.peer_id is not None else text

    @property
    def family(self) -> socket.AddressFamily:
        """The address family to resolve the host to; AF_UNSPEC allows every family."""
        return _HOSTS[self.protocol]

    @property
    def ip(self) -> IPv4Address | IPv6Address | None:
        """The IP address; None if the host is a name."""
        return ip_address(self.host) if self.protocol in ("ip4", "ip6") else None

    def of(self, peer_id: str | None) -> "Address":
        """Return this address with another peer id."""
        return replace(self, peer_id=peer_id)

    def of_relay(self) -> "Address":
        """Return the address of the relay that this address leads through."""
        return replace(self, peer_id=self.relay, relay=None)

    def behind(self, relay: str, peer_id: str) -> "Address":
        """Return the address of a peer behind the relay at this address."""
        return replace(self, peer_id=peer_id, relay=relay)

    def to_bytes(self) -> bytes:
        """Return the binary form, which identify, Kademlia and relay messages carry."""
        data: bytes = Multiaddr(str(self)).to_bytes()
        return data


def parse(text: str) -> Address:
    """Parse `/<ip4|ip6|dns|dns4|dns6>/HOST/tcp/PORT[/p2p/ID][/p2p-circuit[/p2p/ID]]`; AddressError if malformed."""
    try:
        return _parse(text)
    except UnsupportedTransport:
        raise
    except ValueError as error:
        raise AddressError(
            f"{text!r} is not a usable address: {error}. Write it as /ip4/203.0.113.50/tcp/4001 or /dns4/host/tcp/4001"
        ) from error


def parse_supported(text: str) -> Address | None:
    """Parse an address as `parse` does; None if it is valid, but this node does not have its transport."""
    try:
        return parse(text)
    except UnsupportedTransport:
        return None


def _parse(text: str) -> Address:
    parts = text.split("/")
    if len(text) > _MAX_LENGTH or len(parts) < 5 or parts[0] != "" or parts[1] not in _HOSTS:
        raise ValueError("it does not begin with a host and a port")
    protocol, host, transport, port = parts[1:5]
    if transport == "udp":
        raise UnsupportedTransport(f"{text!r} uses QUIC or another UDP transport; this node has only TCP")
    if transport not in list(TransportName):
        raise ValueError(f"transport {transport} is unknown")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port")
    relay, peer_id = _parse_peers(parts[5:])
    return Address(protocol, _parse_host(protocol, host), int(port), peer_id, relay, TransportName(transport))


def _parse_host(protocol: str, host: str) -> str:
    if protocol == "ip4":
        return str(IPv4Address(host))
    if protocol == "ip6":
        return str(IPv6Address(host))
    if not host.isascii() or not 0 < len(host) <= 253 or not all(c.isalnum() or c in "-._" for c in host):
        raise ValueError(f"{host!r} is not a host name")
    return host


def _parse_peers(parts: list[str]) -> tuple[str | None, str | None]:
    """Return the relay and the peer that the end of an address names."""
    peers = [part for name, part in pairwise(parts) if name == "p2p"]
    for peer_id in peers:
        peer_id_to_bytes(peer_id)
    match [part if part in ("p2p", "p2p-circuit") else "ID" for part in parts]:
        case []:
            return None, None
        case ["p2p", "ID"]:
            return None, peers[0]
        case ["p2p", "ID", "p2p-circuit"]:
            return peers[0], None
        case ["p2p", "ID", "p2p-circuit", "p2p", "ID"]:
            return peers[0], peers[1]
    raise ValueError(f"cannot use /{'/'.join(parts)}")


def from_bytes(data: bytes) -> Address:
    """Parse a binary multiaddress; AddressError if this node cannot use it."""
    if len(data) > _MAX_LENGTH:
        raise AddressError(f"a multiaddress of {len(data)} bytes is too long")
    try:
        text = str(Multiaddr(data))
    except (MultiaddrError, ValueError, KeyError, IndexError) as error:
        raise AddressError(f"not a multiaddress: {error}") from error
    return parse(text)


def usable(encoded: Iterable[bytes], limit: int = 16) -> list[Address]:
    """Parse the addresses that a peer announced. Return at most `limit`, without those that this node cannot use."""
    found: list[Address] = []
    for data in encoded:
        with suppress(AddressError):  # a peer may announce transports that this node lacks
            address = from_bytes(data)
            if address.port and address not in found:
                found.append(address)
        if len(found) == limit:
            break
    return found


def parse_cidrs(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse networks in CIDR notation; AddressError names a malformed one."""
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text, strict=False))
        except ValueError as error:
            raise AddressError(f"{text!r} is not a network: {error}. Write it as in 10.0.0.0/8") from error
    return tuple(networks)


def excluded(address: Address, networks: Sequence[Network]) -> bool:
    """Return whether an address lies in one of the networks. A host name lies in none."""
    ip = address.ip
    return ip is not None and any(ip.version == network.version and ip in network for network in networks)


def expand(address: Address) -> list[Address]:
    """Return the addresses at which a listener can be reached: for 0.0.0.0 and ::, one per interface."""
    ip = address.ip
    if ip is None or not ip.is_unspecified:
        return [address]
    entries = chain.from_iterable(psutil.net_if_addrs().values())
    hosts = {entry.address for entry in entries if entry.family == address.family and "%" not in entry.address}
    return [replace(address, host=host) for host in sorted(hosts)]
