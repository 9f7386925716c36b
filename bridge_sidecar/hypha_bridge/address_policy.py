"""Protection from SSRF: a job may download from public addresses only, which the transport checks when it connects.

The transport resolves the name itself and connects to the address that it checked, so a name that resolves differently
a moment later cannot lead elsewhere. It checks each redirect in the same way.
"""

import ipaddress
import socket
from typing import Final

import httpx

from hypha_bridge.errors import forbidden

_PROTOCOL_ASSIGNMENTS: Final = ipaddress.ip_network("192.0.0.0/24")  # Python 3.11 counts parts of it as public
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Return whether an IP address is public; an IPv6 address that embeds an IPv4 address counts as the latter."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False  # a scoped IPv6 address is link-local
    if isinstance(parsed, ipaddress.IPv6Address):
        embedded = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if embedded is None and parsed in _NAT64:
            embedded = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        return parsed in _GLOBAL_UNICAST and parsed.is_global
    return parsed.is_global and not parsed.is_multicast and parsed not in _PROTOCOL_ASSIGNMENTS


class PublicTransport(httpx.BaseTransport):
    """An HTTP transport that connects to public addresses only, unless the configuration allows private ones."""

    def __init__(self, *, allow_private_addresses: bool) -> None:
        self._transport = httpx.HTTPTransport()
        self._allow_private_addresses = allow_private_addresses

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to a checked address; BridgeError (403) or httpx.TransportError."""
        host = request.url.host
        if self._allow_private_addresses:
            return self._transport.handle_request(request)
        error: httpx.ConnectError | None = None
        for address in _resolve(host, request.url.port):
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return self._transport.handle_request(pinned)
            except httpx.ConnectError as refused:
                error = refused
        raise error or httpx.ConnectError(f"{host!r} has no address")

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()


def _resolve(host: str, port: int | None) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"cannot resolve {host!r}: {error}") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not all(map(is_public, addresses)):
        raise forbidden(
            f"{host!r} has a private, local or reserved address, and this worker downloads from public addresses only. "
            "The worker's owner can allow others with allow_private_addresses."
        )
    return addresses
