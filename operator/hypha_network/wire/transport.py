"""The interface of transports, and raw connections, which carry TLS and the muxer."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from hypha_network.errors import ConnectionBroken, NetworkError
from hypha_network.wire.addresses import Address, Network

CLOSE_TIMEOUT_S = 1.0


class ByteStream(Protocol):
    """The byte stream below a raw connection: a socket, or a stream through a relay."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray | memoryview:
        """Return the data that has arrived, at most `max_bytes`; empty at the end."""

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all data."""

    async def aclose(self) -> None:
        """Close."""


Turn = Callable[[], Awaitable[None]]


class Link(Protocol):
    """A way to a peer that is not secured yet: a raw connection, or a path for datagrams."""

    address: Address
    """The address of the other end, or of the relay if the connection is relayed."""
    is_initiator: bool
    """Whether this node is the client of the handshake and the negotiations."""
    turn: Turn | None
    """Awaited before input is processed, so that this node processes input of the peer only in its turn."""

    @property
    def local_port(self) -> int | None:
        """The local port of a connection that this node dialled."""

    @property
    def limited(self) -> bool:
        """Whether a relay limits the bytes or the time of the connection."""

    async def close(self) -> None:
        """Close, even if the calling task is cancelled."""


class RawConnection:
    """A byte stream to a known address. Every failure of the stream below is raised as ConnectionBroken."""

    def __init__(self, stream: ByteStream, address: Address, *, is_initiator: bool) -> None:
        self._stream = stream
        self.address = address
        """The address of the other end, or of the relay if the connection is relayed."""
        self.is_initiator = is_initiator
        """Whether this node is the client of TLS and the negotiations."""
        self.local_port: int | None = None
        """The local port of a connection that this node dialled."""
        self.limited = False
        """Whether a relay limits the bytes or the time of the connection."""
        self.turn: Turn | None = None
        """Awaited before a read returns, so that this node processes input of the peer only in its turn."""

    async def read(self, max_bytes: int) -> bytes:
        """Return the data that has arrived, between 1 and `max_bytes` bytes; empty at the end."""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError, NetworkError) as error:
            raise ConnectionBroken(f"the connection failed: {error.__cause__ or error}") from error
        if self.turn is not None:
            await self.turn()
        return data

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
            raise ConnectionBroken(f"the connection failed: {error.__cause__ or error}") from error

    async def close(self) -> None:
        """Close the stream below, even if the calling task is cancelled."""
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
            await self._stream.aclose()


Accept = Callable[[Link], Awaitable[None]]


class Transport(Protocol):
    """A way to carry bytes between nodes; `hypha_network.wire.transports` lists those that this node has."""

    async def connect(
        self, address: Address, excluded: Sequence[Network] = (), listening: Sequence[Address] = ()
    ) -> Link:
        """Connect to an address outside the excluded networks; DialError says why every attempt failed.

        The IP address is checked to which this node connects. A host name may resolve to any.

        Args:
            address: where to connect.
            excluded: the networks to which this node does not connect.
            listening: connect from the port of one of these addresses of this node if possible, so that the peer
                observes the address to which a NAT maps it.
        """

    async def punch(self, address: Address, listening: Sequence[Address], *, is_initiator: bool) -> Link:
        """Connect from a listening port to the IP address of a peer that does the same, until that succeeds.

        It has no time limit of its own. DialError if no listening port can reach the address.

        Args:
            address: where the peer connects from.
            listening: the addresses at which this node listens.
            is_initiator: whether this node is the client of the handshake. The two sides have different roles.
        """

    async def listen(
        self, address: Address, accept: Accept, make_room: Callable[[], None], nursery: trio.Nursery
    ) -> Sequence[Address]:
        """Accept connections in the nursery from now on; return the addresses, with their ports, to connect to.

        Raises NetworkError if listening is impossible.

        Args:
            address: where to listen.
            accept: serves a connection, which lasts as long as this call.
            make_room: closes a connection. It is called when this process has no descriptor left for another one.
            nursery: runs the calls of `accept`.
        """
