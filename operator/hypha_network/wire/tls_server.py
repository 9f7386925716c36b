"""TLS 1.3 for clients without a certificate. They verify this node by its key, and authenticate with a token."""

import socket
import ssl
from contextlib import suppress

import trio

from hypha_network.errors import ConnectionBroken
from hypha_network.identity import Identity
from hypha_network.wire.tcp import peer_address
from hypha_network.wire.tls import READ_BYTES, WRITE_BYTES, Tls
from hypha_network.wire.transport import CLOSE_TIMEOUT_S, RawConnection, Turn

_DRAIN_PAUSE_S = 0.01
"""Pause between two reads of data that nobody wants, so that a client that floods costs little time."""


class ServerTlsStream:
    """A connection from a client without a certificate. Every failure is raised as `trio.BrokenResourceError`."""

    def __init__(self, stream: trio.SocketStream, identity: Identity) -> None:
        self._stream = stream
        self._tls = Tls(identity.anonymous_context, server=True)
        self._answered = False

    @property
    def socket(self) -> trio.socket.SocketType:
        """The TCP socket, for the caller to wait on."""
        return self._stream.socket

    async def handshake(self, turn: Turn) -> None:
        """Complete the handshake. The caller must limit its time. `turn` is awaited before input is processed."""
        raw = RawConnection(self._stream, peer_address(self._stream), is_initiator=False)
        raw.turn = turn
        try:
            await self._tls.handshake(raw)
        except (ssl.SSLError, ConnectionBroken) as error:
            raise trio.BrokenResourceError(f"TLS handshake failed: {error}") from error

    async def receive_some(self, max_bytes: int = READ_BYTES) -> bytes | memoryview:
        """Return data that has arrived, waiting for at least one byte; empty at the end.

        It reads at most `max_bytes` from the socket at once.
        """
        while True:
            try:
                data = self._tls.decrypt()
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(f"TLS failed: {error.reason or error}") from error
            if data or self._tls.ended:
                return data
            encrypted = await self._stream.receive_some(max_bytes)
            if not encrypted:
                return b""
            self._tls.feed(bytes(encrypted))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send data of any size."""
        self._answered = True
        view = memoryview(data).cast("B")
        for start in range(0, len(view), WRITE_BYTES):
            await self._stream.send_all(self._tls.encrypt(view[start : start + WRITE_BYTES]))

    async def aclose(self) -> None:
        """Close so that the client receives all data sent to it, even if it is still sending."""
        if self._answered:
            scope = trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True)
            with scope, suppress(trio.BrokenResourceError, OSError):
                await self._stream.send_all(self._tls.close_notify())
                self.socket.shutdown(socket.SHUT_WR)
                while await self._stream.receive_some(READ_BYTES):  # noqa: ASYNC110 - this limits a rate
                    await trio.sleep(_DRAIN_PAUSE_S)
        await trio.aclose_forcefully(self._stream)
