"""Certificates and revocation lists: read them, and tell who issued them."""

import logging
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from hypha_contracts.text import escaped
from hypha_messages.types import peer_id_from_ed25519
from hypha_network.errors import IdentityError

logger = logging.getLogger(__name__)

_CRL_PEM = re.compile(rb"-----BEGIN X509 CRL-----[^-]*+-----END X509 CRL-----")
_MAX_CERTIFICATE_BYTES = 8 * 1024
"""Maximum size of a certificate in a peer's path. Those of this network have about 500 bytes."""
MAX_NAME_CHARS = 256
"""Maximum number of characters of a certificate's name that are shown."""
UNREADABLE = (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError)
"""What `cryptography` raises for an extension that is missing or malformed."""


def expiry(path: Sequence[x509.Certificate]) -> datetime:
    """Return when the first certificate of a path expires."""
    return min(certificate.not_valid_after_utc for certificate in path)


def peer_id_of(certificate: x509.Certificate) -> str:
    """Return the peer id of a certificate's key; IdentityError if the key is not Ed25519."""
    key = certificate.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError(f"the certificate of {name_of(certificate)} holds no Ed25519 key")
    return peer_id_from_ed25519(key.public_bytes_raw())


def parse_certificates(pem: bytes, name: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates in a PEM text from a source of this name; IdentityError if one cannot be read."""
    try:
        certificates = tuple(x509.load_pem_x509_certificates(pem))
        for certificate in certificates:
            _read_fields(certificate)
    except Exception as error:  # `cryptography` raises errors other than ValueError too
        raise IdentityError(f"{name}: not a PEM file of X.509 certificates: {error}") from error
    return certificates


def parse_path(encoded: Iterable[bytes]) -> list[x509.Certificate]:
    """Return the certificates of a peer's path, DER; IdentityError if one of them cannot be read."""
    try:
        path = []
        for der in encoded:
            if len(der) > _MAX_CERTIFICATE_BYTES:
                raise ValueError(f"it has {len(der)} bytes, at most {_MAX_CERTIFICATE_BYTES} are allowed")  # noqa: TRY301
            certificate = x509.load_der_x509_certificate(der)
            _read_fields(certificate)
            path.append(certificate)
    except Exception as error:  # `cryptography` reads fewer certificates than OpenSSL, and raises various errors
        raise IdentityError(f"its certificate cannot be read: {error}") from error
    return path


def _read_fields(certificate: x509.Certificate) -> None:
    """Read the fields that `cryptography` decodes on demand, so that a malformed one raises its error here."""
    _ = certificate.public_key(), certificate.subject, certificate.issuer
    _ = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if certificate.serial_number < 0:  # revocation lists cannot name it
        raise ValueError("its serial number is negative")


def parse_crls(pem: bytes, name: str) -> tuple[x509.CertificateRevocationList, ...]:
    """Return the revocation lists in a PEM text from a source of this name; IdentityError if one cannot be read."""
    blocks = _CRL_PEM.findall(pem)
    if pem.strip() and not blocks:
        raise IdentityError(f'{name}: holds no PEM block "X509 CRL"; leave crls_pem out if there are no lists')
    try:
        lists = tuple(x509.load_pem_x509_crl(block) for block in blocks)
        for crl in lists:  # `cryptography` decodes these on demand
            _ = crl.issuer, crl.next_update_utc
            crl.get_revoked_certificate_by_serial_number(0)
    except Exception as error:  # `cryptography` raises errors other than ValueError too
        raise IdentityError(f"{name}: a revocation list cannot be read: {error}") from error
    return lists


def anchors(
    bundle: Iterable[x509.Certificate], crls: Sequence[x509.CertificateRevocationList], source: str
) -> tuple[x509.Certificate, ...]:
    """Return the authorities in a trust bundle, except those that another authority in it has revoked.

    hypha-certutil also puts the node's own certificate into the bundle. It is not an authority, so it is left out.
    """
    authorities = [certificate for certificate in bundle if _is_authority(certificate)]
    trusted = []
    for authority in authorities:
        if any(
            crl.get_revoked_certificate_by_serial_number(authority.serial_number) is not None
            for issuer in authorities
            if issuer is not authority and issued(authority, issuer)
            for crl in crls
            if crl.issuer == issuer.subject and signed_by(crl, issuer)
        ):
            logger.warning("%s: %s is not trusted, because its issuer revoked it", source, name_of(authority))
        else:
            trusted.append(authority)
    if not trusted:
        raise IdentityError(f"{source}: holds no CA certificate; add the network's root or an organisation's CA")
    return tuple(trusted)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except UNREADABLE:
        return False


def issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether an issuer signed a certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Return whether an issuer signed a revocation list."""
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except TypeError:  # a key of this type cannot sign
        return False


def name_of(certificate: x509.Certificate) -> str:
    """Return the name of a certificate's holder, as it is shown."""
    return shown(certificate.subject) or f"serial {certificate.serial_number:x}"


def shown(name: x509.Name) -> str:
    """Return a name as it is shown."""
    return escaped(name.rfc4514_string(), MAX_NAME_CHARS)
