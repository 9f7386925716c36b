"""The TCP transport."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import trio

from hypha_network.errors import DialError, NetworkError
from hypha_network.wire.addresses import Address
from hypha_network.wire.transport import RawConnection

CONNECT_TIMEOUT_S = 10.0


class Tcp:
    """Connect and listen over TCP."""

    async def connect(self, address: Address) -> RawConnection:
        """Connect to an address; DialError says why every attempt failed."""
        reasons = []
        try:
            with trio.fail_after(CONNECT_TIMEOUT_S):
                for host in await _resolve(address):
                    try:
                        stream = await trio.open_tcp_stream(host, address.port)
                    except OSError as error:
                        reasons.append(_reason(error))
                    else:
                        return RawConnection(stream, address, is_initiator=True)
        except trio.TooSlowError:
            raise DialError(f"{address}: no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise DialError(f"{address}: {error.strerror or error}") from error
        raise DialError(f"{address}: {'; '.join(reasons) or 'no such host'}")

    async def listen(
        self, address: Address, accept: Callable[[RawConnection], Awaitable[None]], nursery: trio.Nursery
    ) -> list[Address]:
        """Accept connections in the nursery from now on; NetworkError if listening is impossible."""
        try:
            listeners = await trio.open_tcp_listeners(address.port, host=address.host)
        except OSError as error:
            raise NetworkError(
                f"cannot listen on {address}: {error.strerror or error}; choose another listen address"
            ) from error

        async def accept_stream(stream: trio.SocketStream) -> None:
            await accept(RawConnection(stream, peer_address(stream), is_initiator=False))

        for listener in listeners:
            nursery.start_soon(partial(trio.serve_listeners, accept_stream, [listener], handler_nursery=nursery))
        return [replace(address, port=listener.socket.getsockname()[1], peer_id=None) for listener in listeners]


async def _resolve(address: Address) -> list[str]:
    found = await trio.socket.getaddrinfo(address.host, address.port, address.family, trio.socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _reason(error: OSError) -> str:
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
