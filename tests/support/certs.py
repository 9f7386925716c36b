"""Certificates for tests, made in memory in a millisecond or two."""

from dataclasses import dataclass, field
from pathlib import Path

from hypha_devnet.certs import (
    Credential,
    NodeFiles,
    create_crl,
    create_node,
    create_organisation,
    create_root,
    write_node,
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
