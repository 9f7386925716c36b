"""Accepts connections, and limits those that have not authenticated.

Unauthenticated connections are limited in number and rate. The source with the most of them loses its oldest one first,
so that no source can block other clients. Authenticated connections use at most half of the process's descriptors.
"""

import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from hypha_contracts import descriptors
from hypha_network.fairness import FairPlaces, FairRate
from hypha_network.rate_limited_log import RateLimitedLogger

_log = RateLimitedLogger(logging.getLogger(__name__))

MAX_UNAUTHENTICATED: Final = 128
UNAUTHENTICATED_PER_S: Final = 20.0
MAX_UNAUTHENTICATED_AT_ONCE: Final = 256
"""How many connections one source may open at once without authenticating; then it may open `UNAUTHENTICATED_PER_S`.
The node closes further ones before their handshake."""
_MAX_ACCEPTED_AT_ONCE: Final = 64
_ACCEPT_PAUSE_S: Final = 0.1
_CREDENTIALS: Final = struct.Struct("3i")
"""The process, user and group of the other end of a Unix socket."""


class Connection:
    """An accepted connection. It is unauthenticated until `mark_authenticated`.

    Attributes:
        source: who made it: an address, or a process on this host.
    """

    def __init__(self, accepted: socket.socket, source: str, limiter: "_Limiter") -> None:
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        self.source = source
        self._limiter = limiter
        self._place: trio.CancelScope
        self._authenticated = False

    def mark_authenticated(self) -> bool:
        """Exempt the connection from the limits of unauthenticated ones. False if too many are authenticated."""
        if not self._authenticated:
            self._authenticated = self._limiter.exempt(self._place, self.source)
        return self._authenticated

    async def serve(self, handler: Callable[["Connection"], Awaitable[None]]) -> None:
        """Call the handler, and close the connection at its end or once another one needs its place."""
        try:
            with self._limiter.unauthenticated.hold(self.source) as self._place:
                await handler(self)
        finally:
            self._limiter.authenticated -= self._authenticated
            self.stream.socket.close()


class _Limiter:
    """Limits the unauthenticated connections of each source and of all, and the authenticated ones."""

    def __init__(self) -> None:
        self.unauthenticated = FairPlaces(MAX_UNAUTHENTICATED)
        self.authenticated = 0
        self._rate = FairRate(UNAUTHENTICATED_PER_S, MAX_UNAUTHENTICATED_AT_ONCE)
        self._max_authenticated = descriptors.limit() // 2

    def admits(self, source: str) -> bool:
        """Whether another connection of this source is within its rate. It counts until it is authenticated."""
        return self._rate.take(source, trio.current_time())

    def exempt(self, place: trio.CancelScope, source: str) -> bool:
        """Count a connection as authenticated. False if there are too many."""
        if self.authenticated >= self._max_authenticated:
            return False
        self.authenticated += 1
        self.unauthenticated.free(place)
        self._rate.give_back(source, trio.current_time())
        return True


async def serve_connections(
    listeners: Sequence[trio.SocketListener], handler: Callable[[Connection], Awaitable[None]]
) -> None:
    """Call the handler with each connection, until cancelled. Closes the listeners."""
    limiter = _Limiter()
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, socket.socket(fileno=listener.socket.detach()), limiter, handler, nursery)


async def _accept(
    listener: socket.socket,
    limiter: _Limiter,
    handler: Callable[[Connection], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Accept connections, many at once, because one that exceeds the rate of its source must cost next to nothing."""
    with listener:
        listener.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(listener.fileno())
            try:
                for _ in range(_MAX_ACCEPTED_AT_ONCE):
                    accepted, _address = listener.accept()
                    source = _source(accepted)
                    if limiter.admits(source):
                        nursery.start_soon(Connection(accepted, source, limiter).serve, handler)
                    else:
                        accepted.close()
                        _log.warning(source, "closed a connection, because too many before it did not authenticate")
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:
                _log.warning("connector", "cannot accept connections right now: %s", error)
                await trio.sleep(_ACCEPT_PAUSE_S)


def _source(connection: socket.socket) -> str:
    if connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return f"process {_CREDENTIALS.unpack(credentials)[0]}"
    try:
        return str(connection.getpeername()[0]).removeprefix("::ffff:")
    except OSError:  # it is gone already
        return "an unknown address"
