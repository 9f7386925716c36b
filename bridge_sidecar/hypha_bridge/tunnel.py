"""Tunnels through HTTP proxies (CONNECT).

The bridge asks for an address that it has checked, never for a name, because the proxy would resolve the name again.
"""

import socket
import ssl
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

import h11

from hypha_bridge.errors import source_failed
from hypha_bridge.happy_eyeballs import Address, connect_to_any

_MAX_ADDRESSES: Final = 4
"""How many addresses of a host the bridge tries."""
_PORTS: Final = {"http": 80, "https": 443}
_RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})


def open_tunnel(
    proxy: str, addresses: Sequence[Address], port: int, timeout_s: float, context: ssl.SSLContext
) -> socket.socket:
    """Return a connection through a proxy to one of several addresses, IPv4 addresses first.

    Raises:
        OSError: the proxy does not answer, or cannot reach the addresses now.
        BridgeError: the proxy refuses.
    """
    ordered = sorted(addresses, key=lambda address: address.family != socket.AF_INET)[:_MAX_ADDRESSES]
    error = OSError("the host has no address")
    deadline = time.monotonic() + timeout_s
    for address in ordered:
        try:
            return _open(proxy, str(address.sockaddr[0]), port, deadline, context)
        except OSError as problem:
            error = problem
    raise error


def _open(proxy: str, address: str, port: int, deadline: float, context: ssl.SSLContext) -> socket.socket:
    url = urlsplit(proxy)
    host, proxy_port = url.hostname or "", url.port or _PORTS[url.scheme]
    try:
        found = socket.getaddrinfo(host, proxy_port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"cannot resolve the proxy {host}: {error}") from error
    connection = connect_to_any([Address(family, sockaddr) for family, *_, sockaddr in found], _left_s(deadline))
    try:
        connection.settimeout(_left_s(deadline))
        if url.scheme == "https":
            connection = context.wrap_socket(connection, server_hostname=host)
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        _check_status(_connect(connection, target, deadline), host, target)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_status(status: int, host: str, target: str) -> None:
    if status in _RETRYABLE:
        raise OSError(f"the proxy {host} answers HTTP {status} for {target}")
    if not 200 <= status < 300:
        raise source_failed(
            f"the proxy {host} refuses connections to {target} (HTTP {status}). Let it connect to addresses, or name "
            "the host in no_proxy (jobs.proxy.noProxy)."
        )


def _connect(connection: socket.socket, target: str, deadline: float) -> int:
    """Ask the proxy for a tunnel. Return the status of its answer."""
    protocol = h11.Connection(h11.CLIENT)
    connection.sendall(protocol.send(h11.Request(method="CONNECT", target=target, headers=[("Host", target)])) or b"")
    while True:
        try:
            event = protocol.next_event()
        except h11.RemoteProtocolError as error:
            raise OSError(f"the proxy does not speak HTTP: {error}") from error
        if isinstance(event, h11.Response):
            return event.status_code
        if event is h11.NEED_DATA:
            connection.settimeout(_left_s(deadline))
            protocol.receive_data(connection.recv(4096))


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the proxy did not answer in time")
    return left_s
