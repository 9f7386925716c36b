"""Certificates for a test network: a root, organisations below it, nodes below those; and revocation lists.

They have the same fields as those of hypha-certutil. For production, use a certificate authority.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hypha_network.pkcs8 import seed_from_pem

_ROOT_DAYS, _ORGANISATION_DAYS, _NODE_DAYS, _CRL_DAYS = 3650, 1825, 365, 30
_SKEW = timedelta(days=1)
_UNSPECIFIED = IPv4Address(0)
_CRL_END = b"-----END X509 CRL-----\n"


@dataclass(frozen=True)
class NodeFiles:
    """The paths of a node's credentials, by the keys of its configuration."""

    cert: Path
    key: Path
    trust: Path


@dataclass(frozen=True)
class Credential:
    """A certificate, its key, and the certificates of its issuers: the nearest first, the root last."""

    certificate: x509.Certificate
    key: Ed25519PrivateKey
    issuers: tuple[x509.Certificate, ...] = ()

    @property
    def cert_pem(self) -> bytes:
        """The certificate, then the intermediates, PEM. The chain of a root is the root alone."""
        return b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.issuers[:-1]))

    @property
    def key_pem(self) -> bytes:
        """The key, PKCS#8 in PEM."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def trust_pem(self) -> bytes:
        """The root that every node of the network trusts, PEM."""
        return (self.issuers or (self.certificate,))[-1].public_bytes(Encoding.PEM)


def create_root() -> Credential:
    """Make the certificate authority of a new network."""
    key = Ed25519PrivateKey.generate()
    return _sign(None, _name("Hypha Devnet", "Hypha Devnet Root CA"), key, _authority(key, None), days=_ROOT_DAYS)


def create_organisation(root: Credential, name: str) -> Credential:
    """Make an organisation's authority below a root."""
    key = Ed25519PrivateKey.generate()
    return _sign(root, _name(name, f"{name} CA"), key, _authority(key, 0), days=_ORGANISATION_DAYS)


def create_node(
    authority: Credential,
    name: str,
    *,
    key: Ed25519PrivateKey | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> Credential:
    """Make a node's certificate below an authority.

    Args:
        authority: its issuer.
        name: the node's DNS name or IP address.
        key: the node's key; default: a new one.
        not_before: when it begins to be valid; default: a day ago.
        not_after: when it expires; default: in a year.
    """
    (organisation,) = authority.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    extensions = {
        x509.BasicConstraints(ca=False, path_length=None): True,
        _key_usage(digital_signature=True, key_agreement=True): True,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]): False,
        # Rust nodes require 0.0.0.0.
        x509.SubjectAlternativeName([x509.IPAddress(_UNSPECIFIED), _general_name(name)]): False,
    }
    subject = _name(str(organisation.value), name)
    key = key or Ed25519PrivateKey.generate()
    return _sign(authority, subject, key, extensions, days=_NODE_DAYS, not_before=not_before, not_after=not_after)


def create_crl(
    authority: Credential, revoked_serials: Sequence[int] = (), *, next_update: datetime | None = None
) -> bytes:
    """Make an authority's revocation list, PEM."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - _SKEW)
        .next_update(next_update or now + timedelta(days=_CRL_DAYS))
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
    )
    for serial in revoked_serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, None).public_bytes(Encoding.PEM)


def write_node(node: Credential, directory: Path, name: str) -> NodeFiles:
    """Write `<name>-cert.pem`, `<name>-key.pem` (readable by this user only) and `<name>-trust.pem`."""
    files = NodeFiles(*(directory / f"{name}-{kind}.pem" for kind in ("cert", "key", "trust")))
    directory.mkdir(parents=True, exist_ok=True)
    files.cert.write_bytes(node.cert_pem)
    files.trust.write_bytes(node.trust_pem)
    write_private(files.key, node.key_pem)
    return files


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only this user can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def make(directory: Path, organisation: str, nodes: Sequence[str], revoked: Sequence[str] = ()) -> list[Path]:
    """Make the missing certificates of a network in a directory; return the files written. ValueError, OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    root = _authority_at(directory, "root", create_root, written)
    above = (directory / "root-cert.pem",)

    def create() -> Credential:
        return create_organisation(root, organisation)

    authority = _authority_at(directory, "organisation", create, written, above)
    for name in nodes:
        if not (directory / f"{name}-cert.pem").exists():
            files = write_node(create_node(authority, name), directory, name)
            written += [files.cert, files.key, files.trust]
    crls = directory / "crls.pem"
    if revoked or not crls.exists():
        serials = _revoked_serials(crls)
        for name in revoked:
            certificate = x509.load_pem_x509_certificate((directory / f"{name}-cert.pem").read_bytes())
            serials.append(certificate.serial_number)
        crls.write_bytes(create_crl(root) + create_crl(authority, serials))
        written.append(crls)
    return written


def _authority_at(
    directory: Path, name: str, create: Callable[[], Credential], written: list[Path], issuers: Sequence[Path] = ()
) -> Credential:
    cert, key = directory / f"{name}-cert.pem", directory / f"{name}-key.pem"
    if cert.exists():
        return load_credential(cert, key, issuers)
    credential = create()
    write_private(key, credential.key_pem)
    cert.write_bytes(credential.certificate.public_bytes(Encoding.PEM))
    written += [cert, key]
    return credential


def _revoked_serials(crls: Path) -> list[int]:
    if not crls.exists():
        return []
    blocks = crls.read_bytes().split(_CRL_END)[:-1]
    return [entry.serial_number for block in blocks for entry in x509.load_pem_x509_crl(block + _CRL_END)]


def load_credential(cert: Path, key: Path, issuers: Sequence[Path] = ()) -> Credential:
    """Load a credential: its certificate, its key, and the certificates of its issuers, the nearest first."""
    return Credential(
        x509.load_pem_x509_certificate(cert.read_bytes()),
        Ed25519PrivateKey.from_private_bytes(seed_from_pem(key.read_bytes())),
        tuple(x509.load_pem_x509_certificate(path.read_bytes()) for path in issuers),
    )


def _authority(key: Ed25519PrivateKey, path_length: int | None) -> dict[x509.ExtensionType, bool]:
    """Return the extensions of an authority, and whether each is critical."""
    return {
        x509.BasicConstraints(ca=True, path_length=path_length): True,
        _key_usage(digital_signature=True, key_cert_sign=True, crl_sign=True): True,
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()): False,
    }


def _sign(
    issuer: Credential | None,
    subject: x509.Name,
    key: Ed25519PrivateKey,
    extensions: Mapping[x509.ExtensionType, bool],
    *,
    days: int,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> Credential:
    """Make a certificate; without an issuer, it signs itself."""
    issuer_key = issuer.key if issuer else key
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before or now - _SKEW)
        .not_valid_after(not_after or now + timedelta(days=days))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension, critical in extensions.items():
        builder = builder.add_extension(extension, critical)
    return Credential(builder.sign(issuer_key, None), key, (issuer.certificate, *issuer.issuers) if issuer else ())


def _name(organisation: str, common_name: str) -> x509.Name:
    names = {NameOID.ORGANIZATION_NAME: organisation, NameOID.COMMON_NAME: common_name}
    return x509.Name([x509.NameAttribute(kind, name) for kind, name in names.items()])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_usage(**usages: bool) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{usage: usages.get(usage, False) for usage in every})
