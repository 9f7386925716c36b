"""Ports for programs that cannot choose one themselves."""

import socket

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port that no other program gets, at any address, as long as this process runs.

    The port stays bound, and Linux gives a bound port neither to others that ask for any port nor to their connections.
    The program that gets the port by its number may listen there all the same, because both set SO_REUSEADDR. It may
    listen at all addresses, so the port is bound at all of them: one that is bound at 127.0.0.1 alone can become the
    port of a connection from 127.0.0.2.
    """
    dual = socket.has_dualstack_ipv6()
    reserved = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if dual:
        reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    reserved.bind(("", 0))
    _reserved.append(reserved)
    return int(reserved.getsockname()[1])
