"""IP networks, as node and operator name them in configurations."""

from ipaddress import ip_network
from typing import Final

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


def check_cidr(text: str) -> str:
    """Return the text of an IP network; ValueError for any other text."""
    try:
        ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{error}; {WRITE_CIDR}") from error
    return text
