"""Multiaddresses: parse them, select the usable ones, and find those of this machine."""

import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import chain, islice, pairwise

import psutil

from hypha_contracts.addresses import IPAddress, unwrap
from hypha_messages.types import peer_id_from_bytes, peer_id_to_bytes
from hypha_network.wire.multistream import encode_varint, prefixed

Network = IPv4Network | IPv6Network

_HOSTS = {
    "ip4": socket.AF_INET,
    "ip6": socket.AF_INET6,
    "dns": socket.AF_UNSPEC,
    "dns4": socket.AF_INET,
    "dns6": socket.AF_INET6,
}
_UNSUPPORTED = {"ws", "wss", "tls", "http", "https"}
"""Protocols over TCP that other nodes have."""
_MAX_LENGTH = 1024
_MAX_PARTS = 6
"""A host, a port, a protocol over UDP, a relay, p2p-circuit, and the peer behind the relay."""
_IP_BYTES = {"ip4": 4, "ip6": 16}
_CODES = {
    4: "ip4",
    6: "tcp",
    41: "ip6",
    53: "dns",
    54: "dns4",
    55: "dns6",
    273: "udp",
    290: "p2p-circuit",
    421: "p2p",
    461: "quic-v1",
}
"""The names of the codes in binary multiaddresses."""
_NUMBERS = {name: encode_varint(code) for code, name in _CODES.items()}


class TransportName(StrEnum):
    """The transports of this node, as an address names them. `hypha_network.wire.transports` implements them."""

    TCP = "tcp"
    QUIC = "quic-v1"


class AddressError(ValueError):
    """A text is not an address that this node can use; the message says which text and why."""


class UnsupportedTransport(AddressError):  # noqa: N818 - the address is valid; a node with more transports can use it
    """A valid address names a transport that this node does not have, for example WebRTC."""


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
        port = f"tcp/{self.port}" if self.transport is TransportName.TCP else f"udp/{self.port}/{self.transport}"
        text = f"/{self.protocol}/{self.host}/{port}"
        if self.relay is not None:
            text += f"/p2p/{self.relay}/p2p-circuit"
        return f"{text}/p2p/{self.peer_id}" if self.peer_id is not None else text

    @property
    def family(self) -> socket.AddressFamily:
        """The address family to resolve the host to; AF_UNSPEC allows every family."""
        return _HOSTS[self.protocol]

    @property
    def ip(self) -> IPAddress | None:
        """The IP address; None if the host is a name."""
        return ip_address(self.host) if self.protocol in ("ip4", "ip6") else None

    @property
    def endpoint(self) -> "Address":
        """The address to connect to, without the peer there and the peer behind it."""
        return replace(self, peer_id=None, relay=None)

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
        parts = iter(str(self).split("/")[1:])
        return b"".join(_NUMBERS[name] + _encoded(name, parts) for name in parts)


def parse(text: str) -> Address:
    """Parse `/<ip4|ip6|dns|dns4|dns6>/HOST/<tcp/PORT|udp/PORT/quic-v1>[/p2p/ID][/p2p-circuit[/p2p/ID]]`.

    `/ipfs/ID` means the same as `/p2p/ID`. Raises AddressError if the text is malformed.
    """
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
    if parts[:2] == ["", "dnsaddr"]:
        raise UnsupportedTransport("a name whose addresses stand in TXT records can only name a gateway")
    if len(text) > _MAX_LENGTH or len(parts) < 5 or parts[0] != "" or parts[1] not in _HOSTS:
        raise ValueError("it does not begin with a host and a port")
    parts[2] = parse_host(parts[1], parts[2])
    parts[5:] = ["p2p" if part == "ipfs" else part for part in parts[5:]]
    for name, value in pairwise(parts[5:]):
        if name == "p2p":
            peer_id_to_bytes(value)
    return _build(parts[1:])


def _build(parts: list[str]) -> Address:
    """Return the address of these names and valid values; ValueError if this node cannot use it."""
    if len(parts) < 4 or parts[0] not in _HOSTS:
        raise ValueError("it does not begin with a host and a port")
    protocol, host, transport, port, *rest = parts
    if transport not in ("tcp", "udp"):
        raise ValueError(f"transport {transport} is unknown")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port")
    name = TransportName.TCP
    if transport == "tcp" and _UNSUPPORTED.intersection(rest[:1]):
        raise UnsupportedTransport(f"this node has nothing over TCP that is called /{rest[0]}")
    if transport == "udp":
        if rest[:1] != ["quic-v1"]:
            over = f"/{rest[0]}" if rest else ""
            raise UnsupportedTransport(
                f"'/{protocol}/{host}/udp/{port}{over}' uses a transport that this node does not have; "
                f"over UDP, it has QUIC, as in /{protocol}/{host}/udp/{port}/quic-v1"
            )
        name, rest = TransportName.QUIC, rest[1:]
    relay, peer_id = _parse_peers(rest)
    return Address(protocol, host, int(port), peer_id, relay, name)


def parse_host(protocol: str, host: str) -> str:
    """Return the normal form of an IP address, or of a name for every other protocol; ValueError if malformed."""
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
        return _build(_read_parts(data))
    except UnsupportedTransport:
        raise
    except ValueError as error:
        raise AddressError(f"not a usable multiaddress: {error}") from error


def _read_parts(data: bytes) -> list[str]:
    """Return the names and values of a binary multiaddress, as far as this node knows its protocols."""
    parts: list[str] = []
    at = 0
    for _ in range(_MAX_PARTS):
        if at == len(data):
            return parts
        code, at = _read_varint(data, at)
        name = _CODES.get(code)
        if name is None:
            return [*parts, f"protocol {code}"]
        parts.append(name)
        if name in ("p2p-circuit", "quic-v1"):
            continue
        size = 2 if name in ("tcp", "udp") else _IP_BYTES.get(name)
        if size is None:
            size, at = _read_varint(data, at)
        value = data[at : at + size]
        at += size
        if at > len(data):
            raise ValueError("it is truncated")
        parts.append(_value(name, value))
    if at < len(data):
        raise ValueError(f"it has more than {_MAX_PARTS} parts")
    return parts


def _value(name: str, value: bytes) -> str:
    match name:
        case "p2p":
            return peer_id_from_bytes(value)
        case "tcp" | "udp":
            return str(int.from_bytes(value))
        case "ip4":
            return socket.inet_ntoa(value)
        case "ip6":
            return str(IPv6Address(value))
    return parse_host(name, value.decode("ascii"))


def _encoded(name: str, parts: Iterator[str]) -> bytes:
    """Return the binary form of the value that belongs to a protocol, taken from the parts after its name."""
    match name:
        case "p2p-circuit" | "quic-v1":
            return b""
        case "p2p":
            return prefixed(peer_id_to_bytes(next(parts)))
        case "tcp" | "udp":
            return int(next(parts)).to_bytes(2)
        case "ip4" | "ip6":
            return ip_address(next(parts)).packed
    return prefixed(next(parts).encode())


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of at most two bytes, and the position after it."""
    encoded = data[at : at + 2]
    if encoded and encoded[0] < 0x80:
        return encoded[0], at + 1
    if len(encoded) < 2 or encoded[1] >= 0x80:
        raise ValueError(f"the number at byte {at} is truncated or too large")
    return encoded[0] & 0x7F | encoded[1] << 7, at + 2


def usable(encoded: Iterable[bytes], limit: int = 16) -> list[Address]:
    """Parse the addresses that a peer announced. Return at most `limit`, without those that this node cannot use.

    Only the first `2 * limit` are parsed, so that a peer cannot occupy this node with malformed ones.
    """
    found: dict[Address, None] = {}
    for data in islice(encoded, 2 * limit):
        if len(found) == limit:
            break
        with suppress(AddressError):  # a peer may announce transports that this node lacks
            address = from_bytes(data)
            if address.port:
                found[address] = None
    return list(found)


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
    return address.ip is not None and ip_excluded(address.ip, networks)


def ip_excluded(ip: IPAddress, networks: Sequence[Network]) -> bool:
    """Return whether an IP address, or the IPv4 address that it embeds, lies in one of the networks."""
    forms = {ip, unwrap(ip)}
    return any(form.version == network.version and form in network for form in forms for network in networks)


def source_of(address: Address) -> str:
    """Return the party to which connections from an address count: an IPv4 address, an IPv6 /64, or the relay."""
    if address.relay is not None or address.ip is None:
        return address.relay or address.host
    ip = unwrap(address.ip)
    return str(ip) if ip.version == 4 else str(ip_network((int(ip) >> 64 << 64, 64)))


def expand(address: Address) -> list[Address]:
    """Return the addresses at which a listener can be reached: for 0.0.0.0 and ::, one per interface."""
    ip = address.ip
    if ip is None or not ip.is_unspecified:
        return [address]
    entries = chain.from_iterable(psutil.net_if_addrs().values())
    hosts = {entry.address for entry in entries if entry.family == address.family and "%" not in entry.address}
    return [replace(address, host=host) for host in sorted(hosts)]


def local_port_for(host: str, listening: Iterable[Address], transport: TransportName = TransportName.TCP) -> int | None:
    """Return the listening port from which to connect to an IP address; None if no listener is of its kind."""
    for address in listening:
        if address.transport is transport and address.ip is not None and leads_to(address.ip, ip_address(host)):
            return address.port
    return None


def leads_to(local: IPAddress, remote: IPAddress) -> bool:
    """Return whether a socket that is bound to a local address can connect to a remote one."""
    return local.version == remote.version and (local.is_unspecified or local.is_loopback == remote.is_loopback)
