"""The TCP transport."""

import errno
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import trio

from hypha_contracts.backoff import Backoff
from hypha_network.errors import DialError, NetworkError
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.addresses import Address, Network, local_port_for
from hypha_network.wire.processor import CpuBudget, charged_to
from hypha_network.wire.race import AllFailedError, race
from hypha_network.wire.resolver import CONNECT_TIMEOUT_S, resolve
from hypha_network.wire.transport import Accept, RawConnection

_accept_log = RateLimitedLogger(logging.getLogger(__name__))

ACCEPT_CPU_SHARE = 0.1
"""The part of one core that accepting connections may take. More of them wait in the kernel's queue."""
QUEUED_CONNECTIONS = 256
"""The length of the kernel's queue. It is short, so that nobody waits long behind a flood."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_PORT_UNUSABLE = {errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EACCES}
_NO_ROOM_PAUSE_S = 0.05
PUNCH_PAUSES = Backoff(first_s=0.2, max_s=2.0, jitter=0.0)
"""The pauses after an attempt to punch was refused, alike on both sides.

A NAT refuses until an attempt from inside has passed it, so both attempts must be on their way at the same time.
"""


class Tcp:
    """Connect and listen over TCP."""

    async def connect(
        self, address: Address, excluded: Sequence[Network] = (), listening: Sequence[Address] = ()
    ) -> RawConnection:
        """Connect to an address outside the excluded networks; DialError says why every attempt failed."""
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                hosts, left_out = await resolve(address, excluded)
                stream, reasons = await _connect_to_any(hosts, address.port, listening)
        except trio.TooSlowError:
            raise DialError(f"{address}: no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except (OSError, UnicodeError) as error:
            raise DialError(f"{address}: {getattr(error, 'strerror', None) or error}") from error
        if stream is not None:
            return _dialled(stream, address)
        raise DialError(f"{address}: {'; '.join(reasons + left_out) or 'no such host'}")

    async def punch(self, address: Address, listening: Sequence[Address], *, is_initiator: bool) -> RawConnection:
        """Connect from a listening port to the IP address of a peer that does the same, until that succeeds."""
        port = local_port_for(address.host, listening)
        if port is None:
            raise DialError(f"{address}: this node listens on no address from which to connect there")
        for pause_s in PUNCH_PAUSES.pauses():
            try:
                stream = await _connect_from(port, address.host, address.port)
                return _dialled(stream, address, is_initiator=is_initiator)
            except OSError:
                await trio.sleep(pause_s)
        raise AssertionError("the pauses do not end")

    async def listen(
        self, address: Address, accept: Accept, make_room: Callable[[], None], nursery: trio.Nursery
    ) -> list[Address]:
        """Accept connections in the nursery from now on; NetworkError if listening is impossible."""
        try:
            listeners = await trio.open_tcp_listeners(address.port, host=address.host, backlog=QUEUED_CONNECTIONS)
        except OSError as error:
            raise NetworkError(
                f"cannot listen on {address}: {error.strerror or error}; choose another listen address"
            ) from error
        for listener in listeners:
            # After binding, so that this process can connect from the port, and no other can listen on it.
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            nursery.start_soon(_accept_all, listener, accept, make_room, nursery)
        return [replace(address, port=listener.socket.getsockname()[1], peer_id=None) for listener in listeners]


async def _accept_all(
    listener: trio.SocketListener, accept: Accept, make_room: Callable[[], None], nursery: trio.Nursery
) -> None:
    budget = CpuBudget(ACCEPT_CPU_SHARE, burst_s=0.05)
    with charged_to(budget):
        async with listener:
            while True:
                await budget.turn()
                try:
                    stream = await listener.accept()
                except OSError as error:  # for every other error than these, the peer is to blame
                    if error.errno in _NO_ROOM:
                        _accept_log.warning("listener", "cannot accept a connection: %s", error.strerror)
                        make_room()
                        await trio.sleep(_NO_ROOM_PAUSE_S)
                else:
                    nursery.start_soon(_serve, stream, accept)


async def _serve(stream: trio.SocketStream, accept: Accept) -> None:
    try:
        await accept(RawConnection(stream, peer_address(stream), is_initiator=False))
    finally:
        await trio.aclose_forcefully(stream)


def _dialled(stream: trio.SocketStream, address: Address, *, is_initiator: bool = True) -> RawConnection:
    raw = RawConnection(stream, address, is_initiator=is_initiator)
    raw.local_port = stream.socket.getsockname()[1]
    return raw


async def _connect_from(local_port: int, host: str, port: int) -> trio.SocketStream:
    """Connect from a port on which this process listens, and the address that leads to the host; OSError."""
    family, any_address = (socket.AF_INET6, "::") if ":" in host else (socket.AF_INET, "0.0.0.0")  # noqa: S104
    connecting = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        await connecting.bind((any_address, local_port))
        await connecting.connect((host, port))
    except BaseException:
        connecting.close()
        raise
    return trio.SocketStream(connecting)


async def _connect(host: str, port: int, listening: Iterable[Address]) -> trio.SocketStream:
    """Connect, from a listening port unless that has a connection to the same place already; OSError."""
    if (local_port := local_port_for(host, listening)) is not None:
        try:
            return await _connect_from(local_port, host, port)
        except OSError as error:
            if error.errno not in _PORT_UNUSABLE:
                raise
    return await trio.open_tcp_stream(host, port)


async def _connect_to_any(
    hosts: Sequence[str], port: int, listening: Sequence[Address]
) -> tuple[trio.SocketStream | None, list[str]]:
    """Connect to the first host that answers; return its stream, or why all failed."""
    attempts = [partial(_connect, host, port, listening) for host in hosts]
    try:
        return await race(attempts, OSError, lambda late: late.socket.close()), []
    except AllFailedError as error:
        return None, [_reason(failure) for failure in error.failures]


def _reason(error: Exception) -> str:
    """Return why an attempt to connect failed; trio wraps the reason in an exception group."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)


def peer_address(stream: trio.SocketStream) -> Address:
    """Return the other end's address of an accepted connection."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:  # the peer has already closed the connection
        host, port = "0.0.0.0", 0  # noqa: S104 - an address to print, not to listen on
    return Address("ip6" if ":" in host else "ip4", host.split("%")[0], port)
