"""A connection over TLS 1.3 to the node that has a given peer id: its key is all that it is known by.

No authority vouches for it and its names say nothing, so certificates may expire and be renewed at any time. Nothing is
sent before the key was compared; that the server holds it has been proven by the handshake.
"""

import http.client
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hypha_messages.types import peer_id_from_ed25519

_CONNECT_S: Final = 10


class WrongNode(ConnectionError):  # noqa: N818 - what it is
    """Another node answers, or something that is none."""


class PinnedConnection(http.client.HTTPConnection):
    """A connection to the node behind a URL; connecting raises WrongNode unless it has the peer id."""

    def __init__(self, url: str, peer_id: str, answer_s: float) -> None:
        address = urlsplit(url)
        super().__init__(address.hostname or "", address.port or 443)
        self._peer_id = peer_id
        self._answer_s = answer_s
        self.stream = socket.socket()

    def connect(self) -> None:
        """Connect, and verify whom."""
        raw = socket.create_connection((self.host, self.port), _CONNECT_S)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a request waits for the handshake's last ACK
        with raw:  # unless it goes on below
            stream = _context().wrap_socket(raw)
        self.stream.close()  # what stood for it so far
        self.stream = self.sock = stream
        found = _peer_id(stream)
        if found != self._peer_id:
            raise WrongNode(f"{self.host}:{self.port} is {found or 'no Hypha node'}, not the worker {self._peer_id}")
        stream.settimeout(self._answer_s)

    def close(self) -> None:
        """Close, also what `http.client` has forgotten."""
        super().close()
        self.stream.close()


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _peer_id(stream: ssl.SSLSocket) -> str | None:
    certificate = stream.getpeercert(binary_form=True)
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
    except ValueError:
        return None
    return peer_id_from_ed25519(key.public_bytes_raw()) if isinstance(key, Ed25519PublicKey) else None
