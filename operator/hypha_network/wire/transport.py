"""Raw connections: TCP, and whatever else can carry bytes (a relayed stream). TLS and the muxer run on them."""

from collections.abc import Sequence
from typing import Protocol

import trio

from hypha_network.errors import ConnectionBroken, DialError, NetworkError
from hypha_network.wire.addresses import Address

CONNECT_TIMEOUT_S = 10.0
_READ_BYTES = 64 * 1024


class ByteStream(Protocol):
    """What a raw connection needs below it."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray | memoryview:
        """Return what has arrived, at most `max_bytes`; empty at the end."""

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all data."""

    async def aclose(self) -> None:
        """Close."""


class RawConnection:
    """A byte stream to a known address. Every failure of the stream below is raised as ConnectionBroken."""

    def __init__(self, stream: ByteStream, address: Address, *, is_initiator: bool) -> None:
        self._stream = stream
        self.address = address
        """Where the other end is; of a relayed connection, the relay's address."""
        self.is_initiator = is_initiator

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes; empty at the end."""
        try:
            return bytes(await self._stream.receive_some(_READ_BYTES if n is None else n))
        except (trio.BrokenResourceError, trio.ClosedResourceError, NetworkError) as error:
            raise ConnectionBroken(f"the connection broke: {error.__cause__ or error}") from error

    async def read_exactly(self, size_bytes: int) -> bytes:
        """Return that many bytes."""
        data = b""
        while len(data) < size_bytes:
            part = await self.read(size_bytes - len(data))
            if not part:
                raise ConnectionBroken("the peer closed the connection")
            data += part
        return data

    async def write(self, data: bytes) -> None:
        """Send all data."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, NetworkError) as error:
            raise ConnectionBroken(f"the connection broke: {error.__cause__ or error}") from error

    async def close(self) -> None:
        """Close the stream below."""
        await self._stream.aclose()


async def connect_tcp(address: Address) -> RawConnection:
    """Connect to an address; DialError says what every attempt met."""
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            found = await trio.socket.getaddrinfo(address.host, address.port, address.family, trio.socket.SOCK_STREAM)
            reasons = []
            for host in dict.fromkeys(str(entry[4][0]) for entry in found):
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


def _reason(error: OSError) -> str:
    """Say what an attempt to connect met; trio puts that into a group."""
    cause: BaseException = error.__cause__ or error
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)


async def listen_tcp(address: Address) -> Sequence[trio.SocketListener]:
    """Listen on an address; NetworkError says why that is impossible."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise NetworkError(
            f"cannot listen on {address}: {error.strerror or error}; choose another listen address"
        ) from error


def peer_address(stream: trio.SocketStream) -> Address:
    """Return the other end's address of an accepted connection."""
    try:
        host, port = stream.socket.getpeername()[:2]
    except OSError:  # it is gone already
        host, port = "0.0.0.0", 0  # noqa: S104 - an address to print, not to listen on
    return Address("ip6" if ":" in host else "ip4", host.split("%")[0], port)
