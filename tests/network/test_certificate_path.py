"""What TLS accepts over TCP, QUIC accepts, and nothing else."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from hypha_devnet.certs import Credential, create_node, create_organisation
from hypha_network.errors import IdentityError
from hypha_network.identity import Identity
from hypha_network.wire.certificate_path import verified_path
from hypha_network.wire.tls import Tls
from support.certs import Pki, ecdsa_node, identity_of, impostor

DAY = timedelta(days=1)
CLIENT, SERVER = x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH
ANY = x509.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE


def with_uses(pki: Pki, *uses: x509.ObjectIdentifier, keys: x509.KeyUsage | None = None) -> Credential:
    node = pki.node("node")
    builder = (
        x509.CertificateBuilder(node.certificate.issuer, node.certificate.subject, node.key.public_key(), 7)
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + DAY)
    )
    if uses:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    if keys is not None:
        builder = builder.add_extension(keys, critical=True)
    return Credential(builder.sign(pki.organisation.key, None), node.key, node.issuers)


def key_usage(**used: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: used.get(name, False) for name in names})


def self_signed() -> Credential:
    key = Ed25519PrivateKey.generate()
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7)
    builder = builder.not_valid_before(datetime.now(UTC) - DAY).not_valid_after(datetime.now(UTC) + DAY)
    return Credential(builder.sign(key, None), key)


CREDENTIALS: dict[str, Callable[[Pki], Credential]] = {
    "a node": lambda pki: pki.node("node"),
    "a node of another organisation": lambda pki: create_node(create_organisation(pki.root, "Globex"), "node"),
    "a node of another network": lambda _: Pki().node("node"),
    "an expired node": lambda pki: create_node(
        pki.organisation, "node", not_before=datetime.now(UTC) - 9 * DAY, not_after=datetime.now(UTC) - DAY
    ),
    "a node of tomorrow": lambda pki: create_node(pki.organisation, "node", not_before=datetime.now(UTC) + DAY),
    "a node below a node": lambda pki: create_node(pki.node("node"), "child"),
    "a node without its issuers": lambda pki: replace(pki.node("node"), issuers=()),
    "an organisation": lambda pki: pki.organisation,
    "the root": lambda pki: pki.root,
    "a self-signed peer": lambda _: self_signed(),
    "a node with an ECDSA key": ecdsa_node,
    "without uses": with_uses,
    "for clients only": lambda pki: with_uses(pki, CLIENT),
    "for servers only": lambda pki: with_uses(pki, SERVER),
    "for any use": lambda pki: with_uses(pki, ANY),
    "for signing e-mail": lambda pki: with_uses(pki, x509.ExtendedKeyUsageOID.EMAIL_PROTECTION),
    "a key for signatures": lambda pki: with_uses(pki, keys=key_usage(digital_signature=True)),
    "a key for agreement": lambda pki: with_uses(pki, keys=key_usage(key_agreement=True)),
    "a key for encipherment": lambda pki: with_uses(pki, keys=key_usage(key_encipherment=True)),
    "a key for certificates": lambda pki: with_uses(pki, keys=key_usage(key_cert_sign=True)),
}


def openssl_accepts(identity: Identity, credential: Credential, *, of_server: bool) -> bool:
    """Let OpenSSL shake hands with a peer that has this certificate, as over TCP."""
    peer = impostor(credential)
    ours = Tls(identity.client_context if of_server else identity.server_context, server=not of_server)
    theirs = Tls(peer.server_context if of_server else peer.client_context, server=of_server)
    for _ in range(3):
        for one, other in ((ours, theirs), (theirs, ours)):
            try:
                one._object.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
            other._incoming.write(one._outgoing.read())
    return True


def ours_accepts(identity: Identity, credential: Credential, *, of_server: bool) -> bool:
    chain = x509.load_pem_x509_certificates(credential.cert_pem)
    try:
        path = verified_path(identity, [each.public_bytes(Encoding.DER) for each in chain], of_server=of_server)
    except IdentityError:
        return False
    return path[0] == credential.certificate and path[-1] in identity.trust


@pytest.mark.parametrize("of_server", [True, False])
@pytest.mark.parametrize("trusted", ["root", "organisation"])
@pytest.mark.parametrize("kind", CREDENTIALS)
def test_the_verdict_on_a_certificate_is_that_of_openssl(kind: str, trusted: str, of_server: bool) -> None:
    pki = Pki()
    authority = pki.root if trusted == "root" else pki.organisation
    identity = identity_of(pki.node("self"), trust=authority.certificate.public_bytes(Encoding.PEM))
    credential = CREDENTIALS[kind](pki)
    assert ours_accepts(identity, credential, of_server=of_server) == openssl_accepts(
        identity, credential, of_server=of_server
    )


def test_a_path_with_too_many_certificates_is_refused() -> None:
    pki = Pki()
    der = pki.node("node").certificate.public_bytes(Encoding.DER)
    with pytest.raises(IdentityError, match="11 certificates"):
        verified_path(pki.identity("self"), [der] * 11, of_server=True)


def test_a_certificate_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        verified_path(Pki().identity("self"), [b"nonsense"], of_server=True)
