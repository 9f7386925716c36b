"""A node's identity and trust: its certificate chain and key, and the network's trust bundle and revocation lists.

Revocation works as in the reference implementation (rustls). Without lists, this node checks nothing. With lists,
every certificate below the trust anchor needs a list from its issuer, and a list past its next update still counts.
"""

import logging
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from hypha_network.certificates import (
    UNREADABLE,
    anchors,
    expiry,
    issued,
    name_of,
    parse_certificates,
    parse_crls,
    peer_id_of,
    shown,
    signed_by,
)
from hypha_network.errors import IdentityError
from hypha_network.pkcs8 import seed_from_pem, seed_to_pem

logger = logging.getLogger(__name__)

_MAX_FILE_BYTES = 4 * 1024 * 1024
_UNSPECIFIED = IPv4Address(0)


@dataclass(frozen=True)
class IdentityFiles:
    """The files of an identity. With `crls_optional`, the file of the revocation lists may be missing."""

    cert: Path
    key: Path
    trust: Path
    crls: Path | None = None
    crls_optional: bool = False

    def state(self) -> tuple[object, ...]:
        """Return a value that changes whenever a file changes, or a link to it points to another file."""
        return tuple(_file_state(path) for path in (self.cert, self.key, self.trust, self.crls) if path is not None)


class _Source(NamedTuple):
    pem: bytes
    name: str


@dataclass(frozen=True)
class Identity:
    """A node's identity. Build it with `load` or `from_pem`, which check it. Times are in UTC."""

    chain: tuple[x509.Certificate, ...]
    trust: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    seed: bytes = field(repr=False)
    files: IdentityFiles | None = None

    @classmethod
    def load(
        cls,
        cert_pem: Path | str,
        key_pem: Path | str,
        trust_pem: Path | str,
        crls_pem: Path | str | None = None,
        *,
        crls_optional: bool = False,
    ) -> "Identity":
        """Read an identity from PEM files; IdentityError names the file, the cause and a remedy.

        With `crls_optional`, the identity has no revocation lists for as long as their file is missing.
        """
        crls = Path(crls_pem) if crls_pem else None
        files = IdentityFiles(Path(cert_pem), Path(key_pem), Path(trust_pem), crls, crls_optional)
        lists = None if crls is not None and crls_optional and not crls.exists() else crls
        sources = (_read(path) for path in (files.cert, files.key, files.trust, lists))
        identity = cls._build(*sources, files=files)
        if files.key.stat().st_mode & 0o004:
            logger.warning("%s is readable by every user of this machine. Run `chmod o-r` on it.", files.key)
        return identity

    @classmethod
    def from_pem(cls, cert: bytes, key: bytes, trust: bytes, crls: bytes = b"") -> "Identity":
        """Build an identity from PEM texts; IdentityError names the cause."""
        return cls._build(
            _Source(cert, "the certificate"),
            _Source(key, "the key"),
            _Source(trust, "the trust bundle"),
            _Source(crls, "the revocation lists"),
        )

    @classmethod
    def _build(
        cls, cert: _Source, key: _Source, trust: _Source, crls: _Source, *, files: IdentityFiles | None = None
    ) -> "Identity":
        chain = parse_certificates(*cert)
        own, now = chain[0], datetime.now(UTC)
        try:
            seed = seed_from_pem(key.pem)
        except ValueError as error:
            raise IdentityError(f"{key.name}: {error}") from error
        lists = parse_crls(*crls)
        if not isinstance(own.public_key(), Ed25519PublicKey):
            raise IdentityError(f"{cert.name}: the certificate's key is not Ed25519; request one for an Ed25519 key")
        if own.public_key() != Ed25519PrivateKey.from_private_bytes(seed).public_key():
            raise IdentityError(
                f"{key.name}: the key does not belong to the first certificate in {cert.name}; "
                "use the pair that was issued together, the node's certificate first"
            )
        if own.not_valid_after_utc < now:
            raise IdentityError(f"{cert.name}: the certificate expired on {own.not_valid_after_utc}; renew it")
        if own.not_valid_before_utc > now:
            raise IdentityError(
                f"{cert.name}: the certificate is valid from {own.not_valid_before_utc}; check the clock"
            )
        identity = cls(chain, anchors(parse_certificates(*trust), lists, trust.name), lists, seed, files)
        _ = identity.client_context, identity.server_context  # so that OpenSSL refuses a bad identity now
        for warning in identity.warnings(now):
            logger.warning("%s: %s", cert.name, warning)
        return identity

    @cached_property
    def peer_id(self) -> str:
        """The node's peer id, base58 text."""
        return peer_id_of(self.chain[0])

    @property
    def not_valid_after(self) -> datetime:
        """When the node's certificate expires."""
        return self.chain[0].not_valid_after_utc

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        """The TLS settings for outbound connections."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the key identifies a peer, not its name
        return context

    @cached_property
    def server_context(self) -> ssl.SSLContext:
        """The TLS settings for inbound connections."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    @cached_property
    def anonymous_context(self) -> ssl.SSLContext:
        """The TLS settings for inbound connections of clients without a certificate. They verify this node's key."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_NONE
        return context

    def warnings(self, now: datetime) -> list[str]:
        """Return the problems that do not keep this node from starting, but may make peers refuse it."""
        return [*filter(None, [self.own_refusal()]), *self.blemishes(now)]

    def own_refusal(self) -> str | None:
        """Return why peers with the same trust bundle and lists refuse this node, or None."""
        path = self._own_path()
        if path is None:
            return "the trust bundle does not lead to it; add its CA there, or the intermediate CAs here"
        reason = self.revocation(path)
        return f"peers will refuse it: {reason}" if reason else None

    def blemishes(self, now: datetime) -> list[str]:
        """Return the problems for which only some peers refuse this node, or which matter later."""
        found = []
        try:
            names = self.chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            named = _UNSPECIFIED in names.get_values_for_type(x509.IPAddress)
        except UNREADABLE:
            named = False
        if not named:
            found.append("it lacks the alternative name IP:0.0.0.0, without which Rust nodes cannot dial this one")
        found += [
            f"the revocation list of {crl.issuer.rfc4514_string()} is out of date since {crl.next_update_utc}"
            for crl in self.crls
            if crl.next_update_utc is not None and crl.next_update_utc < now
        ]
        return found

    @cached_property
    def valid_until(self) -> datetime:
        """When the first certificate of this node's chain expires."""
        return expiry(self._own_path() or self.chain)

    def refusal(self, path: Sequence[x509.Certificate]) -> str | None:
        """Return why this node refuses a peer's path (leaf first, trust anchor last), or None.

        The path was verified in the peer's handshake, maybe with an earlier trust bundle.
        """
        anchored = self._anchored(path)
        if anchored is None:
            return f"the trust bundle does not lead to the certificate of {name_of(path[0])}"
        return self.expired(expiry(anchored)) or self.revocation(anchored)

    def expired(self, peer_valid_until: datetime) -> str | None:
        """Return whose certificate has expired, the peer's or this node's, or None."""
        now = datetime.now(UTC)
        if peer_valid_until < now:
            return f"a certificate of the peer's chain expired on {peer_valid_until}"
        return f"a certificate of this node's chain expired on {self.valid_until}" if self.valid_until < now else None

    def _anchored(self, path: Sequence[x509.Certificate]) -> Sequence[x509.Certificate] | None:
        for length, certificate in enumerate(path):
            if certificate in self.trust:
                return path[: length + 1]
            if anchor := next((anchor for anchor in self.trust if issued(certificate, anchor)), None):
                return [*path[: length + 1], anchor]
        return None

    def revocation(self, path: Sequence[x509.Certificate]) -> str | None:
        """Return why the lists refuse a verified path (leaf first, trust anchor last); None if they do not."""
        if not self.crls:
            return None
        for certificate, issuer in pairwise(path):
            name = shown(certificate.issuer)
            lists = [crl for crl in self.crls if crl.issuer == certificate.issuer]
            if not lists:
                return f"there are revocation lists, but none from {name}, which issued {name_of(certificate)}"
            for crl in lists:
                if not signed_by(crl, issuer):
                    return f"the revocation list of {name} was not signed by its key"
                if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
                    return f"the certificate of {name_of(certificate)} was revoked by {name}"
        return None

    def reload(self) -> "Identity":
        """Read the files again; IdentityError if they are unusable or hold the identity of another peer."""
        if self.files is None:
            raise IdentityError("this identity was not read from files")
        files = self.files
        fresh = Identity.load(files.cert, files.key, files.trust, files.crls, crls_optional=files.crls_optional)
        if fresh.peer_id != self.peer_id:
            raise IdentityError(
                f"{files.cert}: now holds the identity of {fresh.peer_id}; a running node cannot change its "
                f"peer id ({self.peer_id}): restart it, or renew the certificate with the same key"
            )
        return fresh

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # no client resumes a session
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate CA in the trust bundle suffices
        context.load_verify_locations(cadata=b"".join(c.public_bytes(Encoding.DER) for c in self.trust))
        pem = seed_to_pem(self.seed) + b"".join(c.public_bytes(Encoding.PEM) for c in self.chain)
        descriptor = os.memfd_create("hypha-identity", os.MFD_CLOEXEC)  # keeps the key from being written to a disk
        try:
            with os.fdopen(os.dup(descriptor), "wb") as file:
                file.write(pem)
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        except ssl.SSLError as error:
            raise IdentityError(f"OpenSSL refuses the certificate and key: {error.reason or error}") from error
        finally:
            os.close(descriptor)
        return context

    def _own_path(self) -> list[x509.Certificate] | None:
        path = [self.chain[0]]
        while len(path) <= len(self.chain):
            for anchor in self.trust:
                if issued(path[-1], anchor):
                    return [*path, anchor]
            issuer = next((c for c in self.chain[1:] if c not in path and issued(path[-1], c)), None)
            if issuer is None:
                return None
            path.append(issuer)
        return None


def _read(path: Path | None) -> _Source:
    if path is None:
        return _Source(b"", "no file")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise IdentityError(f"{path}: {error.strerror}; check the path and its permissions") from error
    if len(data) > _MAX_FILE_BYTES:
        raise IdentityError(f"{path}: larger than {_MAX_FILE_BYTES} bytes; expected PEM certificates or a key")
    return _Source(data, str(path))


def _file_state(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
