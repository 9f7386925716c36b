"""IP networks, as configurations name them, and IPv6 addresses that embed an IPv4 address."""

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Final

IPAddress = IPv4Address | IPv6Address

RESERVED_CIDRS: Final = (
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "fe80::/10",
    "fc00::/7",
)
"""Loopback, private and local networks. A node ignores peer addresses in them unless it is configured otherwise."""

WRITE_CIDR: Final = "write a network as 10.0.0.0/8 or fc00::/7"

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE: Final = IPv6Network("::/96")
_NAT64: Final = IPv6Network("64:ff9b::/96")


def check_cidr(text: str) -> str:
    """Return the text of an IP network; ValueError for any other text."""
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{error}; {WRITE_CIDR}") from error
    return text


def unwrap(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address embeds, which is where its packets may arrive, or the address.

    It unwraps mapped, compatible and translated addresses, NAT64 with the well-known prefix, 6to4 and Teredo clients.
    """
    if isinstance(address, IPv4Address) or int(address) <= 1:  # :: and ::1 embed nothing
        return address
    if any(address in network for network in (_MAPPED, _TRANSLATED, _COMPATIBLE, _NAT64)):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo or (None, None))[1] or address
