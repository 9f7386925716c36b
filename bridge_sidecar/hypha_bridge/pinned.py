"""A connection over TLS 1.3 to the node with a given peer id, which the key in the node's certificate proves.

The bridge checks neither authorities nor names nor validity, so certificates may expire and be renewed at any time. The
handshake proves that the server holds the key. The bridge sends nothing before it has compared the key.
"""

import http.client
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hypha_messages.types import peer_id_from_ed25519

_CONNECT_S: Final = 10


class WrongNode(ConnectionError):  # noqa: N818 - names the cause
    """The server is another node, or not a node."""


class PinnedConnection(http.client.HTTPConnection):
    """A connection to the node at a URL. Connecting raises WrongNode if the node has another peer id."""

    def __init__(self, url: str, peer_id: str, answer_s: float) -> None:
        address = urlsplit(url)
        super().__init__(address.hostname or "", address.port or 443)
        self._peer_id = peer_id
        self._answer_s = answer_s
        self.stream = socket.socket()

    def connect(self) -> None:
        """Connect and verify the peer id."""
        raw = socket.create_connection((self.host, self.port), _CONNECT_S)
        # Without TCP_NODELAY a request waits for the last ACK of the handshake.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with raw:  # closes it unless TLS has taken it over
            stream = _context().wrap_socket(raw)
        self.stream.close()  # the placeholder
        self.stream = self.sock = stream
        found = _peer_id(stream)
        if found != self._peer_id:
            raise WrongNode(f"{self.host}:{self.port} is {found or 'no Hypha node'}, not the worker {self._peer_id}")
        stream.settimeout(self._answer_s)

    def close(self) -> None:
        """Close the connection and the stream, of which `http.client` may have dropped its reference."""
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
    except (ValueError, UnsupportedAlgorithm):
        return None
    return peer_id_from_ed25519(key.public_bytes_raw()) if isinstance(key, Ed25519PublicKey) else None
