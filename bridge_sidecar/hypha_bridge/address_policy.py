"""Protection from SSRF: a job downloads only from addresses that the configuration allows, by default public ones.

The transport resolves the name itself and connects to addresses that it has checked, so a name that resolves
differently a moment later cannot lead elsewhere. It checks each redirect in the same way. Above the connection, nothing
changes: TLS verifies the name.
"""

import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import httpcore
import httpx
from httpcore._backends.sync import SyncStream  # the library makes streams of its own sockets only

from hypha_bridge.errors import forbidden
from hypha_bridge.happy_eyeballs import Address, connect_to_any
from hypha_bridge.tunnel import open_tunnel
from hypha_contracts.addresses import Block, is_reachable

_CONNECT_S: Final = 15.0


class RestrictedTransport(httpx.HTTPTransport):
    """An HTTP transport that connects to addresses of some blocks only. A request to another raises BridgeError (403).

    Args:
        blocks: the allowed addresses.
        context: verifies servers and proxies over TLS.
        proxy_of: returns the proxy for a host, or None if it is asked directly.
    """

    def __init__(
        self, blocks: Sequence[Block], context: ssl.SSLContext, proxy_of: Callable[[str], str | None] = lambda _: None
    ) -> None:
        super().__init__(verify=context)
        # The transport has no argument for it.
        self._pool = httpcore.ConnectionPool(
            ssl_context=context, network_backend=_CheckedBackend(blocks, context, proxy_of)
        )


class _CheckedBackend(httpcore.NetworkBackend):
    def __init__(self, blocks: Sequence[Block], context: ssl.SSLContext, proxy_of: Callable[[str], str | None]) -> None:
        self._blocks, self._context, self._proxy_of = blocks, context, proxy_of

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - never set
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - never set
    ) -> httpcore.NetworkStream:
        """Connect to a host by one of its checked addresses; BridgeError (403) or an error of the library."""
        addresses, proxy = self._resolve(host, port), self._proxy_of(host)
        timeout_s = timeout or _CONNECT_S
        try:
            if proxy:
                connected = open_tunnel(proxy, addresses, port, timeout_s, self._context)
            else:
                connected = connect_to_any(addresses, timeout_s)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return SyncStream(connected)

    def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            through = ", which the bridge does even for a proxy" if self._proxy_of(host) else ""
            raise httpcore.ConnectError(f"cannot resolve {host!r}{through}: {error}") from error
        addresses = [Address(family, sockaddr) for family, *_, sockaddr in found]
        if not all(is_reachable(str(address.sockaddr[0]), port, self._blocks) for address in addresses):
            raise forbidden(
                f"{host!r} has an address that is private, local, reserved or excluded on this worker. "
                "The worker's owner can allow private addresses with allow_private_addresses."
            )
        return addresses
