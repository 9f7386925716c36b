"""UDP sockets, and the paths of QUIC connections over them. A datagram finds its path by its connection id."""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import trio
from qh3._hazmat import UdpSocketState

from hypha_network.wire.addresses import Address, leads_to
from hypha_network.wire.transport import Turn

Remote = tuple[str, int] | tuple[str, int, int, int]
"""The address of a peer, as the socket module has it."""

CONNECTION_ID_BYTES: Final = 8
MAX_WAITING: Final = 4096
"""Maximum number of datagrams of one connection that wait to be processed. More are dropped, as networks do."""
MAX_WAITING_UNAUTHENTICATED: Final = 32
"""The same before the handshake is complete."""
_SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024
LINGER_S: Final = 5.0
"""How long a socket stays open for connections that are closing."""
_READS_AT_ONCE: Final = 8
_LONG_HEADER: Final = 0x80


class UdpPath:
    """The way to a peer over a socket: the datagrams of one connection."""

    def __init__(
        self, endpoint: "Endpoint", remote: Remote, address: Address, first_ids: tuple[bytes, bytes] | None = None
    ) -> None:
        self.endpoint = endpoint
        self.remote = remote
        self.address = address
        """The address of the other end."""
        self.first_ids = first_ids
        """The connection ids to which the peer sent its first datagram and its second; None if this node dials."""
        self.is_initiator = first_ids is None
        self.local_port = endpoint.local_port if self.is_initiator else None
        self.limited = False
        self.alternatives: list[UdpPath] = []
        """The ways to other IP addresses of the name that this node dials."""
        self.turn: Turn | None = None
        """Awaited before datagrams are processed, so that this node processes input of the peer only in its turn."""
        self.max_waiting = MAX_WAITING_UNAUTHENTICATED
        self.owned = False
        """Whether a connection closes the path."""
        self._waiting: list[bytes] = []
        self._changed = trio.Event()
        self._ids: set[bytes] = set()

    def deliver(self, datagram: bytes) -> None:
        """Take a datagram of the peer. The caller calls `wake` afterwards."""
        if len(self._waiting) < self.max_waiting:
            self._waiting.append(datagram)

    def take(self) -> list[bytes]:
        """Return the datagrams that have arrived."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def wake(self) -> None:
        """Let `wait` return."""
        self._changed.set()

    async def wait(self) -> None:
        """Wait until `wake` has been called since the last time."""
        await self._changed.wait()
        self._changed = trio.Event()

    def add_id(self, connection_id: bytes) -> None:
        """Receive datagrams for a connection id from now on."""
        self._ids.add(connection_id)
        self.endpoint.paths[connection_id] = self

    def remove_id(self, connection_id: bytes) -> None:
        """Receive no more datagrams for a connection id."""
        self._ids.discard(connection_id)
        self.endpoint.paths.pop(connection_id, None)

    async def send(self, datagrams: Sequence[bytes]) -> None:
        """Send datagrams, waiting until the socket takes them. Those that cannot be sent are dropped."""
        await self.endpoint.send(datagrams, self.remote)

    def send_now(self, datagram: bytes) -> None:
        """Send a datagram, or drop it."""
        self.endpoint.send_now(datagram, self.remote)

    async def close(self) -> None:
        """Receive no more datagrams."""
        self.detach()

    def detach(self) -> None:
        """Receive no more datagrams."""
        for connection_id in list(self._ids):
            self.remove_id(connection_id)
        self.endpoint.on_unused()


class Endpoint:
    """A UDP socket that carries connections.

    Args:
        sock: the socket, which is bound already and closed with this object.
        on_unknown: takes datagrams with an unknown connection id; without it, they are dropped.
    """

    def __init__(self, sock: socket.socket, on_unknown: Callable[[bytes, Remote], None] | None = None) -> None:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
        self.socket = sock
        self.local_ip = ip_address(sock.getsockname()[0])
        self.local_port: int = sock.getsockname()[1]
        self.paths: dict[bytes, UdpPath] = {}
        self._state = UdpSocketState(sock.fileno())
        self._on_unknown = on_unknown
        self._closed = self._lingering = False

    def leads_to(self, host: str) -> bool:
        """Return whether the socket can reach an IP address."""
        return not self._closed and leads_to(self.local_ip, ip_address(host))

    async def run(self) -> None:
        """Pass datagrams to their paths. When cancelled, go on for a short time until all connections are closed."""
        try:
            await self._read()
        finally:
            self._on_unknown, self._lingering = None, True
            with trio.CancelScope(deadline=trio.current_time() + LINGER_S, shield=True):
                if self.paths:
                    await self._read()
            self.close()

    async def _read(self) -> None:
        with suppress(trio.ClosedResourceError):
            while not self._closed:
                await trio.lowlevel.wait_readable(self.socket.fileno())
                for _ in range(_READS_AT_ONCE):
                    if self._closed or not (batch := self._receive()):
                        break
                    self._pass_on(batch)

    def on_unused(self) -> None:
        """Close the socket if this node is closing and no connection uses it any more."""
        if self._lingering and not self.paths:
            self.close()

    def _receive(self) -> list[tuple[bytes, Remote]]:
        try:
            batch: list[tuple[bytes, Remote]] = self._state.recv()
        except OSError:  # an ICMP message about an earlier datagram
            return []
        return batch

    def _pass_on(self, batch: list[tuple[bytes, Remote]]) -> None:
        touched = set()
        for data, remote in batch:
            path = self.paths.get(connection_id_of(data))
            if path is None:
                if self._on_unknown is not None:
                    self._on_unknown(data, remote)
            elif path.remote[:2] == remote[:2]:  # connections do not migrate, as with the reference
                path.deliver(data)
                touched.add(path)
        for path in touched:
            path.wake()

    async def send(self, datagrams: Sequence[bytes], remote: Remote) -> None:
        """Send datagrams to an address, waiting until the socket takes them. Those that cannot be sent are dropped."""
        unsent = list(datagrams)
        while unsent and not self._closed:
            try:
                sent = self._state.send(unsent, remote)
            except OSError as error:
                sent = getattr(error, "datagrams_sent", 0) + 1
            unsent = unsent[sent:]
            if unsent and not sent:
                with suppress(trio.ClosedResourceError):
                    await trio.lowlevel.wait_writable(self.socket.fileno())

    def send_now(self, datagram: bytes, remote: Remote) -> None:
        """Send a datagram to an address, or drop it."""
        with suppress(OSError):
            self.socket.sendto(datagram, remote)

    def close(self) -> None:
        """Close the socket."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self.socket.fileno())
            self.socket.close()
            del self._state  # holds another descriptor of the socket


def connection_id_of(datagram: bytes) -> bytes:
    """Return the connection id that a datagram is sent to; meaningless if the datagram is malformed."""
    if datagram and datagram[0] & _LONG_HEADER:
        size = datagram[5] if len(datagram) > 5 else 0
        return datagram[6 : 6 + size]
    return datagram[1 : 1 + CONNECTION_ID_BYTES]
