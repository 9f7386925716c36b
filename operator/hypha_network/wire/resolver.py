"""Finds the IP addresses of an address to connect to."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from ipaddress import ip_address
from typing import Final

import trio

from hypha_network.wire.addresses import Address, Network, ip_excluded

CONNECT_TIMEOUT_S: Final = 10.0
"""How long finding the IP addresses and connecting to one of them may take."""
_announced_lookups = trio.CapacityLimiter(8)
"""Look-ups of host names that peers announced. They cannot delay those of the configured gateways."""


async def resolve(address: Address, excluded: Sequence[Network] = ()) -> tuple[list[str], list[str]]:
    """Return the IP addresses of a host outside the excluded networks, and why others are left out.

    Raises:
        OSError: the name has no address, or looking it up failed.
        UnicodeError: the name cannot be looked up.
    """
    announced_name = bool(excluded) and address.ip is None
    lookups: AbstractAsyncContextManager[None] = _announced_lookups if announced_name else nullcontext()
    async with lookups:
        found = await trio.socket.getaddrinfo(address.host, address.port, address.family, trio.socket.SOCK_STREAM)
    hosts = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    allowed = [host for host in hosts if not ip_excluded(ip_address(host), excluded)]
    return allowed, [f"{host} is in a network of exclude_cidr" for host in hosts if host not in allowed]
