"""Protection from SSRF: a job downloads only from addresses that the configuration allows, by default public ones.

The transport resolves the name itself and connects to the address that it checked, so a name that resolves differently
a moment later cannot lead elsewhere. It checks each redirect in the same way.
"""

import socket
from collections.abc import Sequence

import httpx

from hypha_bridge.errors import forbidden
from hypha_contracts.addresses import Block, is_reachable


class RestrictedTransport(httpx.BaseTransport):
    """An HTTP transport that connects to addresses of some blocks only."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._transport = httpx.HTTPTransport()
        self._blocks = blocks

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to a checked address; BridgeError (403) or httpx.TransportError."""
        host = request.url.host
        error: httpx.ConnectError | None = None
        for address in self._resolve(host, request.url.port):
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

    def _resolve(self, host: str, port: int | None) -> list[str]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"cannot resolve {host!r}: {error}") from error
        addresses = [str(entry[4][0]) for entry in found]
        if not all(is_reachable(address, self._blocks) for address in addresses):
            raise forbidden(
                f"{host!r} has an address that is private, local, reserved or excluded on this worker. "
                "The worker's owner can allow private addresses with allow_private_addresses."
            )
        return addresses

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()
