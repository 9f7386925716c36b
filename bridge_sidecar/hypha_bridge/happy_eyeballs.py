"""Connects to one of several addresses of a host, without waiting for an address that does not answer (RFC 8305)."""

import errno
import os
import selectors
import socket
import time
from collections import deque
from itertools import chain, zip_longest
from typing import Final, NamedTuple, cast

_DELAY_S: Final = 0.25
"""How long an attempt runs alone before the next one begins beside it."""


class Address(NamedTuple):
    """An address as `getaddrinfo` returns it."""

    family: int
    sockaddr: tuple[str | int | bytes, ...]


def connect_to_any(addresses: list[Address], timeout_s: float) -> socket.socket:
    """Return a socket that is connected to the address that answers first.

    The next attempt begins as soon as one fails, or after a short delay beside those that have not answered.

    Raises:
        TimeoutError: no address has answered in time.
        OSError: all addresses refuse. The error is that of the last one.
    """
    deadline = time.monotonic() + timeout_s
    ahead = deque(_alternating(addresses))
    error = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    opened: list[socket.socket] = []
    connected: socket.socket | None = None
    with selectors.DefaultSelector() as pending:
        try:
            while ahead or pending.get_map():
                if ahead:
                    address = ahead.popleft()
                    attempt = socket.socket(address.family, socket.SOCK_STREAM)
                    opened.append(attempt)
                    attempt.setblocking(False)
                    if (problem := attempt.connect_ex(address.sockaddr)) not in (0, errno.EINPROGRESS):
                        error = OSError(problem, os.strerror(problem))
                        continue
                    pending.register(attempt, selectors.EVENT_WRITE)
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError(f"no address of the host answered within {timeout_s:g} s")
                for key, _ in pending.select(min(left_s, _DELAY_S) if ahead else left_s):
                    attempt = cast("socket.socket", key.fileobj)
                    if not (problem := attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        connected = attempt
                        return attempt
                    pending.unregister(attempt)
                    error = OSError(problem, os.strerror(problem))
        finally:
            for attempt in opened:
                if attempt is not connected:
                    attempt.close()
    raise error


def _alternating(addresses: list[Address]) -> list[Address]:
    """Return addresses of the preferred family and of the other one in turns."""
    preferred = [address for address in addresses if address.family == addresses[0].family]
    others = [address for address in addresses if address.family != addresses[0].family]
    return [address for address in chain.from_iterable(zip_longest(preferred, others)) if address]
