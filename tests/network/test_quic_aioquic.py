"""The handshake with another implementation of QUIC and TLS, aioquic, in memory."""

import ssl
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.serialization import Encoding
from qh3._hazmat import pull_quic_header
from qh3.quic.packet import encode_quic_retry

from hypha_devnet.certs import Credential
from hypha_network.wire.certificate_path import verified_path
from hypha_network.wire.quic_connection import _SETTINGS
from hypha_network.wire.quic_tls import ALPN, NetworkConnection
from support.certs import Pki

NEAR, FAR = ("192.0.2.1", 1), ("192.0.2.2", 2)


class RequestingConnection(QuicConnection):
    """A server that requests a certificate of its client, which aioquic does only in its own tests."""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = True


def configuration(credential: Credential, *, is_client: bool) -> QuicConfiguration:
    alpn = [ALPN] if is_client else None  # a server with a list refuses clients that offer none, as our nodes do
    made = QuicConfiguration(is_client=is_client, alpn_protocols=alpn, verify_mode=ssl.CERT_NONE)
    made.certificate = credential.certificate
    made.certificate_chain = list(credential.issuers[:1])
    made.private_key = credential.key
    return made


def ours(pki: Pki, seen: list[str], **server: bytes) -> NetworkConnection:
    identity = pki.identity("ours")

    def verify(chain: list[bytes]) -> None:
        path = verified_path(identity, chain, of_server=not server)
        seen.append(path[0].subject.rfc4514_string())

    return NetworkConnection(identity, verify, _SETTINGS, **server)


def exchange(client: Any, server: Any) -> None:
    """Deliver datagrams until neither side has any, and a moment passes between two rounds."""
    now_s = 1.0
    for _ in range(20):
        for sender, receiver, address in ((client, server, NEAR), (server, client, FAR)):
            for datagram, _ in sender.datagrams_to_send(now=now_s):
                receiver.receive_datagram(datagram, address, now=now_s)
        now_s += 0.03


def retried(client: QuicConnection) -> dict[str, bytes]:
    """Answer the client's first datagram by a Retry, as listeners do; return what the server must know of it."""
    (first, _), *_ = client.datagrams_to_send(now=1.0)
    version, _, _, destination, source, *_ = pull_quic_header(first, 0, 8)
    fresh = bytes(range(8))
    retry = encode_quic_retry(
        version=version,
        source_cid=fresh,
        destination_cid=source,
        original_destination_cid=destination,
        retry_token=b"token",
    )
    client.receive_datagram(retry, FAR, now=1.0)
    return {"original_destination_connection_id": destination, "retry_source_connection_id": fresh}


@pytest.mark.parametrize("size_bytes", [0, 100, 100_000])
def test_a_client_of_aioquic_proves_its_certificate_and_sends_data(size_bytes: int) -> None:
    pki, seen = Pki(), []  # type: ignore[var-annotated]
    client = QuicConnection(configuration=configuration(pki.node("theirs"), is_client=True))
    client.connect(FAR, now=1.0)
    server = ours(pki, seen, **retried(client))
    client.send_stream_data(client.get_next_available_stream_id(), bytes(size_bytes), end_stream=True)
    exchange(client, server)
    assert server.confirmed
    assert seen == ["CN=theirs,O=Acme"]
    received = bytearray()
    while event := server.next_event():
        received += getattr(event, "data", b"")
    assert len(received) == size_bytes


def test_a_server_of_aioquic_accepts_our_certificate() -> None:
    pki, seen = Pki(), []  # type: ignore[var-annotated]
    client = ours(pki, seen)
    client.connect(FAR, 1.0)
    server = RequestingConnection(
        configuration=configuration(pki.node("theirs"), is_client=False),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    exchange(client, server)
    assert client.confirmed
    assert seen == ["CN=theirs,O=Acme"]
    assert server.tls._peer_certificate is not None
    ours_der = server.tls._peer_certificate.public_bytes(Encoding.DER)
    assert ours_der == client.configuration.certificate.public_bytes()


def test_a_server_that_requests_no_certificate_is_refused() -> None:
    pki, seen = Pki(), []  # type: ignore[var-annotated]
    client = ours(pki, seen)
    client.connect(FAR, 1.0)
    server = QuicConnection(
        configuration=configuration(pki.node("theirs"), is_client=False),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    exchange(client, server)
    assert not client.confirmed
    assert client.ended is not None
    assert "requests no certificate" in client.ended.reason_phrase
