"""Ports for programs that cannot choose one themselves."""

import socket

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a TCP port of loopback that no other program gets as long as this process runs.

    The port stays bound, and Linux gives a bound port neither to others that ask for any port nor to their connections.
    The program that gets the port by its number may listen there all the same, because both set SO_REUSEADDR.
    """
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    _reserved.append(reserved)
    return int(reserved.getsockname()[1])
