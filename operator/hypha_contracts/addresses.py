"""IP networks: how configurations name them, and which ones are public.

The bridge and the NetworkPolicy of its pod both enforce `reachable_blocks`, so they agree on every address.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import Annotated, Final, NamedTuple, TypeVar

from pydantic import AfterValidator

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
_Network = TypeVar("_Network", IPv4Network, IPv6Network)

RESERVED_CIDRS: Final = (
    "127.0.0.0/8",
    "::/127",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "fe80::/10",
    "fc00::/7",
    *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "ff00::/8"),
)
"""Loopback, private, local and multicast networks. A node dials peers in them only if it is configured to."""

SPECIAL_CIDRS: Final = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    "168.63.129.16/32",  # Azure answers there on every machine: metadata, credentials, DNS
)
"""Networks within the public blocks that are not public.

They are those of IANA's special-purpose registries that are not globally reachable (with 6to4 and Teredo, whose
gateways unwrap an IPv4 address), multicast, and the metadata services of clouds. Services at other private addresses,
such as 169.254.169.254 and fd00:ec2::254, need no entry of their own.
"""

WRITE_CIDR: Final = "write a network as 10.0.0.0/8 or fc00::/7"

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE: Final = IPv6Network("::/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")
_ALL_IPV4: Final = IPv4Network("0.0.0.0/0")
_ALL_IPV6: Final = IPv6Network("::/0")
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")


def check_cidr(text: str) -> str:
    """Return the text of an IP network; ValueError for any other text."""
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{error}; {WRITE_CIDR}") from error
    return text


Cidr = Annotated[str, AfterValidator(check_cidr)]
"""The text of an IP network."""


def unwrap(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address embeds, which is where its packets may arrive, or the address.

    It unwraps mapped, compatible and translated addresses, NAT64 with the well-known prefix, 6to4 and Teredo clients.
    """
    if isinstance(address, IPv4Address) or int(address) <= 1:  # :: and ::1 embed nothing
        return address
    if any(address in network for network in (_MAPPED, _TRANSLATED, _COMPATIBLE, _NAT64)):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo or (None, None))[1] or address


class Block(NamedTuple):
    """A network, the disjoint networks within it that do not belong to the block, and its ports (empty: all)."""

    network: IPNetwork
    excluded: Sequence[IPNetwork]
    ports: Sequence[range] = ()


def reachable_blocks(exclude_cidr: Iterable[str], *, allow_private_addresses: bool) -> list[Block]:
    """Return the blocks of addresses from which a job may download.

    Args:
        exclude_cidr: networks that no job may reach, besides the special ones.
        allow_private_addresses: whether jobs may reach the special ones.
    """
    return [*_reachable_blocks(tuple(exclude_cidr), allow_private_addresses)]


@lru_cache(maxsize=64)
def _reachable_blocks(exclude_cidr: tuple[str, ...], allow_private_addresses: bool) -> tuple[Block, ...]:
    """Return the same blocks. The operator asks at every reconcile of a job, mostly with the same settings."""
    special = () if allow_private_addresses else SPECIAL_CIDRS
    excluded = [ip_network(text, strict=False) for text in (*special, *exclude_cidr)]
    excluded_ipv4 = _of_version(IPv4Network, excluded)
    excluded_ipv6 = [*_of_version(IPv6Network, excluded), *map(_behind_nat64, excluded_ipv4)]
    ipv6 = (_ALL_IPV6,) if allow_private_addresses else (_GLOBAL_IPV6, _NAT64)
    return (
        *_without(_ALL_IPV4, excluded_ipv4),
        *(part for block in ipv6 for part in _without(block, excluded_ipv6)),
    )


def opened_blocks(cidr: str, excluded: Iterable[str] = (), ports: Sequence[range] = ()) -> list[Block]:
    """Return the blocks of a network that is opened besides the reachable ones: it, and it behind NAT64.

    Args:
        cidr: the network.
        excluded: networks within it that stay closed.
        ports: the TCP ports; empty: all.
    """
    network = ip_network(cidr, strict=False)
    inside = [ip_network(text, strict=False) for text in excluded]
    if isinstance(network, IPv6Network):
        return [block._replace(ports=ports) for block in _without(network, _of_version(IPv6Network, inside))]
    ipv4 = _of_version(IPv4Network, inside)
    blocks = [*_without(network, ipv4), *_without(_behind_nat64(network), map(_behind_nat64, ipv4))]
    return [block._replace(ports=ports) for block in blocks]


def _of_version(kind: type[_Network], networks: Iterable[IPNetwork]) -> list[_Network]:
    return [network for network in networks if isinstance(network, kind)]


def _without(block: _Network, excluded: Iterable[_Network]) -> Iterator[Block]:
    inside = list(collapse_addresses(network for network in excluded if network.overlaps(block)))
    if not any(block.subnet_of(network) for network in inside):
        yield Block(block, inside)


def _behind_nat64(network: IPv4Network) -> IPv6Network:
    first = int(_NAT64.network_address) + int(network.network_address)
    return IPv6Network((first, _NAT64.prefixlen + network.prefixlen))


def is_reachable(address: str, port: int, blocks: Iterable[Block]) -> bool:
    """Return whether one of the blocks has this address and port. The kernel connects mapped addresses over IPv4."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
    return any(
        parsed in block.network
        and not any(parsed in network for network in block.excluded)
        and (not block.ports or any(port in ports for ports in block.ports))
        for block in blocks
    )


def parse_listen_address(text: str) -> tuple[str | None, int]:
    """Return the host and port of `host:port`, `:port` (None: all addresses) or `port` (loopback). ValueError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port[:6]) <= 65535):
        raise ValueError("write a port such as 9464 for this host alone, or an address such as 0.0.0.0:9464")
    return (host.strip("[]") or None if colon else "localhost"), int(port)
