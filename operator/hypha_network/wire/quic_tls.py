"""TLS 1.3 inside QUIC, in which both sides present a certificate and check the other's as over TCP.

qh3 presents a client's certificate, but its server requests none. This module adds the request and the checks, and
leaves out what this network has no use for: resumption, early data, compressed certificates.
"""

import secrets
import ssl
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from qh3 import tls
from qh3._hazmat import Buffer, Certificate, SignatureError, X25519KeyExchange, verify_with_public_key
from qh3.quic.configuration import QuicConfiguration
from qh3.quic.connection import QuicConnection
from qh3.quic.events import ConnectionTerminated
from qh3.quic.packet import QuicErrorCode
from qh3.quic.tls_bridge import QuicTlsBridge
from qh3.tls import AlertDescription, CipherSuite, Direction, Epoch, Group, HandshakeType, SignatureAlgorithm, State

from hypha_network.identity import Identity
from hypha_network.pkcs8 import seed_to_pem

Verify = Callable[[list[bytes]], None]
"""Takes the certificates of a peer, DER, its own first. Raises `Refused`."""

ALPN = "libp2p"
"""Confirmed to clients that offer it. This node offers none, because the reference refuses a client that offers any."""
MAX_HANDSHAKE_BYTES = 64 * 1024
"""Maximum number of bytes of a handshake message that is incomplete."""

_CIPHER_SUITES = [
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]
_SIGNATURE_ALGORITHMS = [
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.ECDSA_SECP256R1_SHA256,
    SignatureAlgorithm.ECDSA_SECP384R1_SHA384,
    SignatureAlgorithm.RSA_PSS_RSAE_SHA256,
    SignatureAlgorithm.RSA_PKCS1_SHA256,
]
"""The key of a node is always Ed25519. The other algorithms may sign its certificate."""


class Refused(tls.Alert):
    """This side refuses the peer's certificate. The alert notifies the peer."""

    def __init__(self, reason: str, description: AlertDescription = AlertDescription.bad_certificate) -> None:
        super().__init__(reason)
        self.description = description


class NetworkConnection(QuicConnection):
    """The QUIC protocol of one connection, without input or output."""

    _core: Any  # qh3 declares it as optional, because it is None before the first datagram

    def __init__(self, identity: Identity, verify: Verify, settings: dict[str, Any], **server: Any) -> None:
        super().__init__(configuration=_configuration(identity, is_client=not server, **settings), **server)
        self._verify = verify
        self.held = False

    def _create_tls(self, remote_source_cid: bytes | None) -> QuicTlsBridge:
        bridge = super()._create_tls(remote_source_cid)
        bridge.tls = _NetworkTls(bridge.tls, is_client=self._is_client, verify=self._verify)
        return bridge

    @property
    def confirmed(self) -> bool:
        """Whether both sides have accepted the other's certificate."""
        return bool(self._handshake_complete and self._handshake_confirmed)

    @property
    def ended(self) -> ConnectionTerminated | None:
        """How the connection ended; None if it has not."""
        return self._close_event

    @property
    def refused(self) -> bool:
        """Whether one side ended the handshake by an alert of TLS."""
        return self._close_event is not None and self._close_event.error_code & ~0xFF == QuicErrorCode.CRYPTO_ERROR

    @property
    def ended_by_this_side(self) -> bool:
        """Whether this side ended the connection, or it timed out."""
        return self._core is None or self._core.state not in ("draining", "terminated")

    @property
    def unfinished(self) -> bool:
        """Whether data waits to be sent or acknowledged."""
        return bool(self._core) and bool(self.get_send_buffer_size() or self._core.bytes_in_flight)

    @property
    def latest_rtt_s(self) -> float | None:
        """The latest measured round trip in seconds; None before the first."""
        return self._core.latest_rtt if self._core else None

    @property
    def openable(self) -> int:
        """How many more streams the peer allows."""
        most, _, opened, _ = self._core.stream_limits if self._core else (0, 0, 0, 0)
        return max(0, most - opened)

    def open(self) -> int:
        """Open a stream, and return its number."""
        return int(self._open_stream())

    def hold(self, held: bool) -> None:
        """Hold events back. The core grants the peer as much credit as it passes data on."""
        was_held, self.held = self.held, held
        if was_held and not held:
            self._drain_core()

    def _drain_core(self) -> None:
        if not self.held or self._core.state in ("draining", "terminated"):
            super()._drain_core()


def _configuration(identity: Identity, *, is_client: bool, **settings: Any) -> QuicConfiguration:
    own, *rest = [Certificate(certificate.public_bytes(Encoding.DER)) for certificate in identity.chain]
    return QuicConfiguration(
        is_client=is_client,
        verify_mode=ssl.CERT_NONE,  # `verify` checks certificates
        certificate=own,
        certificate_chain=rest,
        private_key=tls.load_pem_private_key(seed_to_pem(identity.seed)),
        **settings,
    )


class _NetworkTls(tls.Context):
    """The handshake of one connection. It takes the place of qh3's own, `plain`."""

    # qh3 declares these as optional, because they are set in the course of a handshake.
    alpn_cb: Any
    certificate: Any
    certificate_private_key: Any
    key_schedule: Any
    _dec_key: Any
    _enc_key: Any
    _peer_certificate: Any

    def __init__(self, plain: tls.Context, *, is_client: bool, verify: Verify) -> None:
        super().__init__(
            is_client=is_client,
            cipher_suites=list(_CIPHER_SUITES),
            verify_mode=ssl.CERT_NONE,
            signature_algorithms=list(_SIGNATURE_ALGORITHMS),
        )
        self.certificate = plain.certificate
        self.certificate_chain = plain.certificate_chain
        self.certificate_private_key = plain.certificate_private_key
        self.handshake_extensions = plain.handshake_extensions
        self.alpn_cb = plain.alpn_cb
        self.update_traffic_key_cb = plain.update_traffic_key_cb
        self._supported_groups = [Group.X25519]
        self._compress_certificate_algorithms = None
        self._is_client = is_client
        self._verify = verify
        self._certificate_seen = self._certificate_verified = False

    def handle_message(self, input_data: bytes, output_buf: dict[Epoch, Buffer], epoch: int = -1) -> None:
        """Process a part of the peer's handshake; tls.Alert ends the connection."""
        if len(self._receive_buffer) + len(input_data) > MAX_HANDSHAKE_BYTES:
            raise tls.AlertDecodeError("a handshake message is too long")
        try:
            if self._is_client:
                super().handle_message(input_data, output_buf, epoch)
            else:
                self._serve(input_data, output_buf, epoch)
        except tls.Alert:
            raise
        except Exception as error:  # qh3 raises various errors for malformed messages
            raise tls.AlertDecodeError(f"a handshake message is malformed: {error}") from error

    # The client's side

    def _process_certificate(self, certificate: tls.Certificate) -> None:
        """Keep the peer's certificates until it has proved that it holds the key."""
        self._path = [der for der, _ in certificate.certificates]
        if not self._path:
            raise Refused("it presented no certificate", AlertDescription.certificate_required)
        self._peer_certificate = Certificate(self._path[0])

    def _client_handle_compressed_certificate(self, input_buf: Buffer) -> None:  # noqa: ARG002 - qh3's interface
        raise tls.AlertUnexpectedMessage("a compressed certificate, which this node did not offer to read")

    def _client_handle_certificate_verify(self, input_buf: Buffer) -> None:
        super()._client_handle_certificate_verify(input_buf)
        self._verify(self._path)

    def _client_handle_finished(self, input_buf: Buffer, output_buf: Buffer) -> None:
        if self._certificate_request is None:
            raise tls.AlertHandshakeFailure("the server requests no certificate, so it is no node of this network")
        super()._client_handle_finished(input_buf, output_buf)

    # The server's side

    def _serve(self, data: bytes, output: dict[Epoch, Buffer], epoch: int) -> None:
        self._receive_buffer += data
        while len(self._receive_buffer) >= 4:
            size = 4 + int.from_bytes(self._receive_buffer[1:4])
            if len(self._receive_buffer) < size:
                return
            message, self._receive_buffer = self._receive_buffer[:size], self._receive_buffer[size:]
            kind, buffer = message[0], Buffer(data=message)
            expected = Epoch.INITIAL if self.state == State.SERVER_EXPECT_CLIENT_HELLO else Epoch.HANDSHAKE
            if epoch != expected or self.state == State.SERVER_POST_HANDSHAKE:
                raise tls.AlertUnexpectedMessage
            if self.state == State.SERVER_EXPECT_CLIENT_HELLO and kind == HandshakeType.CLIENT_HELLO:
                self._answer_hello(buffer, output[Epoch.INITIAL], output[Epoch.HANDSHAKE])
            elif kind == HandshakeType.CERTIFICATE and not self._certificate_seen:
                self._process_certificate(tls.pull_certificate(buffer))
                self._certificate_seen = True
                self.key_schedule.update_hash(message)
            elif kind == HandshakeType.CERTIFICATE_VERIFY and self._certificate_seen and not self._certificate_verified:
                self._verify_client(tls.pull_certificate_verify(buffer))
                self._certificate_verified = True
                self.key_schedule.update_hash(message)
            elif kind == HandshakeType.FINISHED and self._certificate_verified:
                self._finish(tls.pull_finished(buffer))
            else:
                raise tls.AlertUnexpectedMessage
            if not buffer.eof():
                raise tls.AlertDecodeError("extra bytes at the end of a handshake message")

    def _answer_hello(self, message: Buffer, initial: Buffer, handshake: Buffer) -> None:
        hello = tls.pull_client_hello(message)
        cipher_suite = tls.negotiate(
            self._cipher_suites, hello.cipher_suites, tls.AlertHandshakeFailure("no common cipher suite")
        )
        version = tls.negotiate(
            self._supported_versions, hello.supported_versions, tls.AlertProtocolVersion("it does not speak TLS 1.3")
        )
        own_algorithm = tls.negotiate(
            [SignatureAlgorithm.ED25519], hello.signature_algorithms, tls.AlertHandshakeFailure("no Ed25519 signatures")
        )
        shares = [key for group, key in hello.key_share or [] if group == Group.X25519]
        if not shares:
            raise tls.AlertHandshakeFailure("no X25519 key share")
        self.alpn_negotiated = tls.negotiate([ALPN], hello.alpn_protocols)
        self.client_random = hello.random
        self.received_extensions = hello.other_extensions
        self.alpn_cb(self.alpn_negotiated)  # reads the client's transport parameters
        self.key_schedule = tls.KeySchedule(cipher_suite)
        self.key_schedule.extract(None)
        self.key_schedule.update_hash(message.data)
        exchange = X25519KeyExchange()
        with tls.push_message(self.key_schedule, initial):
            tls.push_server_hello(
                initial,
                tls.ServerHello(
                    random=secrets.token_bytes(32),
                    legacy_session_id=hello.legacy_session_id,
                    cipher_suite=cipher_suite,
                    compression_method=tls.CompressionMethod.NULL,
                    key_share=(Group.X25519, exchange.public_key()),
                    supported_version=version,
                ),
            )
        self.key_schedule.extract(exchange.exchange(shares[0]))
        self._setup_traffic_protection(Direction.ENCRYPT, Epoch.HANDSHAKE, b"s hs traffic")
        self._setup_traffic_protection(Direction.DECRYPT, Epoch.HANDSHAKE, b"c hs traffic")
        self._send_flight(handshake, own_algorithm)
        self.key_schedule.extract(None)
        self._setup_traffic_protection(Direction.ENCRYPT, Epoch.ONE_RTT, b"s ap traffic")
        self._next_dec_key = self.key_schedule.derive_secret(b"c ap traffic")
        self._set_state(State.SERVER_EXPECT_FINISHED)

    def _send_flight(self, buffer: Buffer, own_algorithm: int) -> None:
        """Send the server's parameters, its request for a certificate, its own certificate, and the proofs."""
        with tls.push_message(self.key_schedule, buffer):
            tls.push_encrypted_extensions(
                buffer,
                tls.EncryptedExtensions(alpn_protocol=self.alpn_negotiated, other_extensions=self.handshake_extensions),
            )
        with tls.push_message(self.key_schedule, buffer):
            _push_certificate_request(buffer)
        own = [(certificate.public_bytes(), b"") for certificate in [self.certificate, *self.certificate_chain]]
        with tls.push_message(self.key_schedule, buffer):
            tls.push_certificate(buffer, tls.Certificate(request_context=b"", certificates=own))
        signed = self.key_schedule.certificate_verify_data(b"TLS 1.3, server CertificateVerify")
        signature = self.certificate_private_key.sign(signed)
        with tls.push_message(self.key_schedule, buffer):
            tls.push_certificate_verify(buffer, tls.CertificateVerify(algorithm=own_algorithm, signature=signature))
        with tls.push_message(self.key_schedule, buffer):
            tls.push_finished(buffer, tls.Finished(self.key_schedule.finished_verify_data(self._enc_key)))

    def _verify_client(self, proof: tls.CertificateVerify) -> None:
        if proof.algorithm not in self._signature_algorithms:
            raise tls.AlertIllegalParameter("a signature algorithm that this node did not offer")
        signed = self.key_schedule.certificate_verify_data(b"TLS 1.3, client CertificateVerify")
        try:
            verify_with_public_key(self._peer_certificate.public_key(), proof.algorithm, signed, proof.signature)
        except SignatureError as error:
            raise tls.AlertDecryptError("it did not prove that it holds the key of its certificate") from error
        self._verify(self._path)

    def _finish(self, finished: tls.Finished) -> None:
        if finished.verify_data != self.key_schedule.finished_verify_data(self._dec_key):
            raise tls.AlertDecryptError("the handshake was altered")
        self._dec_key = self._next_dec_key
        self.update_traffic_key_cb(Direction.DECRYPT, Epoch.ONE_RTT, self.key_schedule.cipher_suite, self._dec_key)
        self._set_state(State.SERVER_POST_HANDSHAKE)


def _push_certificate_request(buffer: Buffer) -> None:
    buffer.push_uint8(HandshakeType.CERTIFICATE_REQUEST)
    with tls.push_block(buffer, 3):
        tls.push_opaque(buffer, 1, b"")
        with tls.push_block(buffer, 2), tls.push_extension(buffer, tls.ExtensionType.SIGNATURE_ALGORITHMS):
            tls.push_list(buffer, 2, buffer.push_uint16, _SIGNATURE_ALGORITHMS)
