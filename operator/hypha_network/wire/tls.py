"""The security transport, `/tls/1.0.0`: TLS 1.3 in which each side verifies the other against the trust bundle.

libp2p's own TLS, with self-signed certificates, is not supported.
"""

import _ssl
import logging
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol
from weakref import WeakSet

import trio
from cryptography import x509

from hypha_network.certificates import expiry, parse_path, peer_id_of
from hypha_network.errors import ConnectionBroken, HandshakeError, IdentityError
from hypha_network.identity import Identity
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.addresses import source_of
from hypha_network.wire.transport import CLOSE_TIMEOUT_S, Link, RawConnection

logger = logging.getLogger(__name__)
_handshake_log = RateLimitedLogger(logger)
_close_log = RateLimitedLogger(logger)

PROTOCOL_ID = "/tls/1.0.0"
HANDSHAKE_TIMEOUT_S = 10.0
READ_BYTES = 512 * 1024
"""Maximum number of bytes to read from the socket at once."""
WRITE_BYTES = 1024 * 1024
"""Maximum number of bytes to encrypt at once, which bounds the memory of a write."""

_RECORD_BYTES = 16 * 1024
_FEED_BYTES = 4 * _RECORD_BYTES
"""Maximum number of bytes to give OpenSSL at once, because its buffers never shrink."""
_NOTHING = memoryview(b"")
"""Used in place of an empty slice, which would keep the complete buffer in memory."""

_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it presented no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it requires a certificate and received none",
    "TLSV1_ALERT_UNKNOWN_CA": "its trust bundle does not lead to our certificate",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "our certificate is on its revocation list",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it considers our certificate expired",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "it could not verify our certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "it denies this node access",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
}


class Certified(Protocol):
    """A connection to a peer whose certificate was verified."""

    path: list[x509.Certificate]
    """The verified chain of the peer: its own certificate first, the trust anchor last."""
    valid_until: datetime
    peer_id: str

    async def close(self) -> None:
        """Close the connection."""


class SecureConnection:
    """An encrypted connection to a peer whose certificate was verified. The muxer runs on it."""

    def __init__(self, raw: RawConnection, tls: "Tls", path: list[x509.Certificate]) -> None:
        self._raw = raw
        self._tls = tls
        self._unread: memoryview | bytes = b""
        self._write_lock = trio.Lock()
        self._broken = False
        self.path = path
        """The verified chain of the peer: its own certificate first, the trust anchor last."""
        self.valid_until = expiry(path)
        self.peer_id = peer_id_of(path[0])
        self.is_initiator = raw.is_initiator

    async def read_some(self) -> bytes | memoryview:
        """Return decrypted data, waiting for at least one byte; empty at the end.

        The caller owns the returned buffer; a slice keeps all of it in memory.
        Raises ConnectionBroken if the connection or TLS fails.
        """
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        return await self._receive()

    async def read_exactly(self, size_bytes: int) -> bytes:
        """Return that many bytes, for negotiation; ConnectionBroken if the connection ends earlier."""
        while len(self._unread) < size_bytes:
            data = await self._receive()
            if not data:
                raise ConnectionBroken("the peer closed the connection")
            self._unread = bytes(self._unread) + bytes(data)
        data, self._unread = self._unread[:size_bytes], self._unread[size_bytes:] or b""
        return bytes(data)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data of any size; ConnectionBroken if the connection fails. Cancelling a write breaks the connection."""
        view = memoryview(data).cast("B")
        async with self._write_lock:
            for start in range(0, len(view), WRITE_BYTES):
                if self._broken:
                    raise ConnectionBroken("the connection is closed")
                await self._send(self._tls.encrypt(view[start : start + WRITE_BYTES]))

    async def close(self) -> None:
        """Send TLS's close notification if possible, and close."""
        try:
            with trio.move_on_after(CLOSE_TIMEOUT_S), suppress(ConnectionBroken):
                async with self._write_lock:
                    if not self._broken:
                        await self._send(self._tls.close_notify())
        finally:
            self._broken = True
            await self._raw.close()

    async def _receive(self) -> bytes | memoryview:
        while True:
            try:
                data = self._tls.decrypt()
            except ssl.SSLError as error:
                reason = _reason(error)
                _close_log.warning(self.peer_id, "the connection failed: %s", reason)
                raise ConnectionBroken(f"the connection with {self.peer_id} failed: {reason}") from error
            if data or self._tls.ended:
                return data
            encrypted = await self._raw.read(READ_BYTES)
            if not encrypted:
                return b""
            self._tls.feed(encrypted)

    async def _send(self, encrypted: bytes) -> None:
        try:
            await self._raw.write(encrypted)
        except ConnectionBroken as error:
            self._broken = True
            raise ConnectionBroken(f"the connection with {self.peer_id} failed: {error}") from error
        except trio.Cancelled:
            self._broken = True  # a part of a TLS record may have been sent
            raise


class TlsTransport:
    """Secures direct and relayed connections with an identity, which can be replaced when it is renewed."""

    def __init__(self, identity: Identity, *, handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S) -> None:
        self.identity = identity
        self.problem: str | None = None
        """Why this node does not use the identity in the files; None if it does."""
        self._handshake_timeout_s = handshake_timeout_s
        self._connections: WeakSet[Certified] = WeakSet()

    async def secure(self, raw: RawConnection, expected: str | None = None) -> SecureConnection:
        """Secure a connection, whose dialler is the TLS client. HandshakeError if either side refuses the other.

        With `expected`, this side refuses every other peer.
        """
        try:
            connection = await self._handshake(raw, expected)
        except HandshakeError as error:
            await raw.close()
            raise handshake_failure(raw, error) from error
        self.track(connection)
        return connection

    def track(self, connection: Certified) -> None:
        """Close a connection once its peer's certificate is no longer valid."""
        self._connections.add(connection)

    async def replace_identity(self, identity: Identity) -> None:
        """Use another identity from now on, and close the connections with peers that it refuses."""
        self.identity = identity
        await self._close_if(lambda connection: identity.refusal(connection.path))

    async def close_expired(self) -> None:
        """Close the connections with peers whose certificate has expired, or all if this node's has."""
        await self._close_if(lambda connection: self.identity.expired(connection.valid_until))

    async def _close_if(self, reason_to_close: Callable[[Certified], str | None]) -> None:
        async with trio.open_nursery() as nursery:
            for connection in list(self._connections):
                if reason := reason_to_close(connection):
                    _close_log.warning(connection.peer_id, "closing the connection: %s", reason)
                    nursery.start_soon(connection.close)

    async def _handshake(self, raw: RawConnection, expected: str | None) -> SecureConnection:
        identity = self.identity
        context = identity.client_context if raw.is_initiator else identity.server_context
        tls = Tls(context, server=not raw.is_initiator)
        try:
            with trio.fail_after(self._handshake_timeout_s):
                await tls.handshake(raw)
            path = tls.verified_path()
            connection = SecureConnection(raw, tls, path)
            refusal = self.identity.refusal(path)  # of the current identity, which may have been replaced meanwhile
        except trio.TooSlowError:
            raise HandshakeError(f"not completed within {self._handshake_timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise HandshakeError(_reason(error)) from error
        except (IdentityError, ConnectionBroken) as error:
            raise HandshakeError(str(error)) from error
        if expected is not None and connection.peer_id != expected:
            raise HandshakeError(f"dialled {expected}, but {connection.peer_id} answered")
        if refusal:
            raise HandshakeError(refusal)
        return connection


class Tls:
    """TLS between two memory buffers, without input or output."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._encrypted = _NOTHING
        self.ended = False

    async def handshake(self, raw: RawConnection) -> None:
        """Complete the handshake; if it fails, send the peer the alert."""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                if alert := self._outgoing.read():
                    with trio.move_on_after(CLOSE_TIMEOUT_S):
                        await raw.write(alert)
                raise
            else:
                done = True
            if outgoing := self._outgoing.read():
                await raw.write(outgoing)
            if done:
                return
            incoming = await raw.read(READ_BYTES)
            if not incoming:
                raise ConnectionBroken("the connection was closed by the peer")
            self._incoming.write(incoming)

    def verified_path(self) -> list[x509.Certificate]:
        """Return the verified chain of the peer: its own certificate first, the trust anchor last; IdentityError."""
        if hasattr(self._object, "get_verified_chain"):  # public from Python 3.13 on
            chain = self._object.get_verified_chain()
        else:
            inner: Any = self._object._sslobj  # type: ignore[attr-defined]
            chain = [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in inner.get_verified_chain()]
        return parse_path(chain)

    def feed(self, encrypted: bytes) -> None:
        """Take encrypted data from the peer. Call this only once all earlier data is decrypted."""
        self._encrypted = memoryview(encrypted)

    def decrypt(self) -> bytes | memoryview:
        """Return all data that can be decrypted now. Sets `ended` once the peer has sent its close notification."""
        waiting = len(self._encrypted) + self._incoming.pending + self._object.pending()
        if not waiting:
            return b""
        # Plain text is shorter than its records, except that OpenSSL may already hold a part of one record.
        buffer = memoryview(bytearray(waiting + _RECORD_BYTES))
        size = 0
        try:
            while size < len(buffer) and not self.ended:
                count = self._read_into(buffer[size:])
                if count is None:
                    break
                size += count
        except ssl.SSLError:
            if not size:  # otherwise return the data now; the next call fails with the same error
                raise
        return buffer[:size]

    def _read_into(self, buffer: memoryview) -> int | None:
        """Decrypt some data into the buffer; None if more data from the peer is needed."""
        while True:
            try:
                count: int = self._object.read(len(buffer), buffer)  # type: ignore[assignment]
            except ssl.SSLWantReadError:
                if not self._encrypted:
                    return None
                self._incoming.write(self._encrypted[:_FEED_BYTES])
                self._encrypted = self._encrypted[_FEED_BYTES:] or _NOTHING
            else:
                self.ended = not count
                return count

    def encrypt(self, data: memoryview) -> bytes:
        """Return the encrypted data to send."""
        self._object.write(data)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        """Return the close notification to send before closing."""
        with suppress(ssl.SSLError, ValueError):
            self._object.unwrap()  # fails without the peer's notification, but has written ours by then
        return self._outgoing.read()


async def keep_valid(transport: TlsTransport, *, interval_s: float = 5.0) -> None:
    """Close connections that are no longer valid, and use changed identity files, without end.

    If the files are unusable, keep the old identity.
    """
    files = transport.identity.files
    state = files.state() if files else None
    while True:
        await trio.sleep(interval_s)
        await transport.close_expired()
        if files is None or (fresh_state := files.state()) == state:
            continue
        state = fresh_state
        try:
            identity = transport.identity.reload()
        except IdentityError as error:
            transport.problem = str(error)
            logger.error("cannot use the new identity, keeping the old one: %s", error)  # noqa: TRY400
        else:
            logger.info("reloaded the identity, whose certificate is valid until %s", identity.not_valid_after)
            transport.problem = None
            await transport.replace_identity(identity)


def handshake_failure(link: Link, error: HandshakeError) -> HandshakeError:
    """Log why a handshake failed, and return the error that names the peer's address."""
    whom = "a relayed peer" if link.address.relay else f"{link.address.host}:{link.address.port}"
    direction = "to" if link.is_initiator else "from"
    _handshake_log.warning(source_of(link.address), "TLS handshake %s %s failed: %s", direction, whom, error)
    return HandshakeError(f"TLS handshake with {whom} failed: {error}")


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    reason = error.reason or str(error)
    return _REASONS.get(reason, reason.lower().replace("_", " "))
