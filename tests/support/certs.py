"""Certificates for tests, made in memory in a millisecond or two."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from hypha_devnet.certs import (
    Credential,
    NodeFiles,
    create_crl,
    create_node,
    create_organisation,
    create_root,
    write_node,
    write_private,
)
from hypha_network.identity import Identity


@dataclass
class Pki:
    """A network's authorities: `identity` makes a node below them in memory, `files` one on disk."""

    root: Credential = field(default_factory=create_root)
    organisation: Credential = field(init=False)

    def __post_init__(self) -> None:
        self.organisation = create_organisation(self.root, "Acme")

    def node(self, name: str) -> Credential:
        return create_node(self.organisation, name)

    def identity(self, name: str, crls: bytes = b"") -> Identity:
        return identity_of(self.node(name), crls=crls)

    def files(self, name: str, directory: Path) -> NodeFiles:
        return write_node(self.node(name), directory, name)

    def crls(self, *revoked: Credential) -> bytes:
        """Return lists of both authorities that revoke these nodes or organisations."""
        serials = [credential.certificate.serial_number for credential in revoked]
        return create_crl(self.root, serials) + create_crl(self.organisation, serials)


def identity_of(credential: Credential, *, trust: bytes = b"", crls: bytes = b"") -> Identity:
    return Identity.from_pem(credential.cert_pem, credential.key_pem, trust or credential.trust_pem, crls)


def impostor(credential: Any, **settings: Any) -> Any:
    """A peer that trusts anyone and shows whatever certificate it is given."""

    def context(protocol: int) -> ssl.SSLContext:
        made = ssl.SSLContext(protocol)
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
        for name, value in settings.items():
            setattr(made, name, value)
        if credential is not None:
            pem = Path(f"/dev/shm/hypha-test-{id(made)}.pem")
            try:
                write_private(pem, credential.key_pem + credential.cert_pem)
                made.load_cert_chain(pem)
            finally:
                pem.unlink()
        return made

    return SimpleNamespace(
        client_context=context(ssl.PROTOCOL_TLS_CLIENT),
        server_context=context(ssl.PROTOCOL_TLS_SERVER),
        peer_id=ID.from_pubkey(create_new_key_pair().public_key).to_base58(),
        refusal=lambda _path: None,
    )


def ecdsa_node(pki: Pki) -> Credential:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(pki.organisation.certificate.subject, x509.Name([]), key.public_key(), 7)
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .sign(pki.organisation.key, None)
    )
    return Credential(certificate, key, (pki.organisation.certificate, pki.root.certificate))  # type: ignore[arg-type]
