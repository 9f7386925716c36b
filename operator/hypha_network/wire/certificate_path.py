"""Verifies the certificates of a peer outside of OpenSSL's TLS, with the rules that OpenSSL applies inside it."""

from collections.abc import Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError, X509StoreFlags

from hypha_network.certificates import parse_path
from hypha_network.errors import IdentityError
from hypha_network.identity import Identity

_MAX_CERTIFICATES: Final = 10
_MIN_RSA_BITS: Final = 2048
_BROKEN_HASHES: Final = ("md5", "sha1")
_INVALID_PURPOSE: Final = 26
_UNREADABLE = (x509.DuplicateExtension, ValueError)


class PathRefusedError(IdentityError):
    """The certificates of a peer do not lead to the trust bundle, or may not be used. `code` is OpenSSL's."""

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(f"its certificate is refused: {reason}")
        self.code = code


def verified_path(identity: Identity, chain: Sequence[bytes], *, of_server: bool) -> list[x509.Certificate]:
    """Verify the certificates that a peer presented; return its own first, the trust anchor last.

    Revocation lists are not consulted; see `Identity.refusal`.

    Args:
        identity: whose trust bundle must lead to the peer's certificate.
        chain: DER, the peer's own first.
        of_server: whether the peer is the TLS server of the connection.

    Raises:
        PathRefusedError: OpenSSL refuses the certificates; the message has its words.
        IdentityError: the certificates cannot be read, or are too many.
    """
    if len(chain) > _MAX_CERTIFICATES:
        raise IdentityError(f"it presented {len(chain)} certificates, at most {_MAX_CERTIFICATES} are read")
    own, *others = [X509.from_cryptography(certificate) for certificate in parse_path(chain)]
    store = X509Store()
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)  # an intermediate CA in the trust bundle suffices
    for anchor in identity.trust:
        store.add_cert(X509.from_cryptography(anchor))
    context = X509StoreContext(store, own, others)
    try:
        context.verify_certificate()
    except X509StoreContextError as error:
        raise PathRefusedError(str(error), error.errors[0]) from error
    found = context.get_verified_chain()
    path = parse_path(certificate.to_cryptography().public_bytes(Encoding.DER) for certificate in found)
    for certificate in path:
        if reason := _unsuitable(certificate, of_server, own=certificate is path[0]) or _weak(certificate):
            raise PathRefusedError(reason, _INVALID_PURPOSE)
    return path


def _unsuitable(certificate: x509.Certificate, of_server: bool, *, own: bool) -> str | None:
    """Return why a certificate may not be used for one side of TLS. OpenSSL asks this of authorities as well."""
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if of_server else ExtendedKeyUsageOID.CLIENT_AUTH
    try:
        values = [extension.value for extension in certificate.extensions]
    except _UNREADABLE as error:
        return f"its extensions cannot be read: {error}"
    if any(isinstance(value, x509.ExtendedKeyUsage) and wanted not in value for value in values):
        return "unsuitable certificate purpose"
    for keys in values if own else ():
        if isinstance(keys, x509.KeyUsage) and not (
            keys.digital_signature or keys.key_agreement or (keys.key_encipherment and of_server)
        ):
            return "unsuitable certificate purpose"
    return None


def _weak(certificate: x509.Certificate) -> str | None:
    """Return why a certificate is too weak for OpenSSL's default level of security, or None."""
    key, algorithm = certificate.public_key(), certificate.signature_hash_algorithm
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return "CA certificate key too weak"
    self_signed = certificate.issuer == certificate.subject
    return (
        "CA signature digest algorithm too weak"
        if algorithm and algorithm.name in _BROKEN_HASHES and not self_signed
        else None
    )
