import base64
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from hypha_devnet.certs import Credential, create_crl, create_node, write_private
from hypha_network import pkcs8
from hypha_network.certificates import MAX_NAME_CHARS, parse_path, peer_id_of
from hypha_network.errors import IdentityError
from hypha_network.identity import Identity, IdentityFiles
from support.certs import Pki, identity_of
from support.hostile_text import HOSTILE

SEED = bytes(range(32))
V1 = bytes.fromhex("302e020100300506032b657004220420") + SEED
PUBLIC = Ed25519PrivateKey.from_private_bytes(SEED).public_key().public_bytes_raw()
V2 = bytes.fromhex("3051020101300506032b657004220420") + SEED + bytes.fromhex("812100") + PUBLIC


@pytest.fixture
def pki() -> Pki:
    return Pki()


def load(files: IdentityFiles | object) -> Identity:
    return Identity.load(files.cert, files.key, files.trust, getattr(files, "crls", None))


def named(text: str, issuer: Credential | None = None, public_key: rsa.RSAPublicKey | None = None) -> Credential:
    """A certificate of a name; without an issuer, an authority that has signed itself."""
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, text)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer.certificate.subject if issuer else name,
        name,
        public_key or key.public_key(),
        x509.random_serial_number(),
        now - timedelta(days=1),
        now + timedelta(days=1),
    ).add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    return Credential(builder.sign(issuer.key if issuer else key, None), key)


class TestKeys:
    @pytest.mark.parametrize("der", [V1, V2], ids=["version 1", "version 2"])
    def test_both_versions_of_pkcs8_give_the_seed(self, der: bytes) -> None:
        assert pkcs8.seed_from_der(der) == SEED

    def test_a_key_with_attributes_gives_the_seed(self) -> None:
        body = V2[2:-35] + bytes.fromhex("a00430020500") + V2[-35:]
        assert pkcs8.seed_from_der(bytes([0x30, len(body)]) + body) == SEED

    def test_openssl_reads_a_written_key(self) -> None:
        assert load_pem_private_key(pkcs8.seed_to_pem(SEED), None).private_bytes_raw() == SEED

    def test_a_public_key_of_another_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match="belongs to another key"):
            pkcs8.seed_from_der(V2[:-1] + bytes([V2[-1] ^ 1]))

    @pytest.mark.parametrize(
        "der", [V1 + b"\0", V1[:-1], V2[:-4], b"", b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x80"]
    )
    def test_a_damaged_key_is_refused(self, der: bytes) -> None:
        with pytest.raises(ValueError, match=r"private key|PKCS#8"):
            pkcs8.seed_from_der(der)

    @given(st.binary(max_size=200))
    def test_garbage_is_refused_with_a_value_error(self, garbage: bytes) -> None:
        for parse in (pkcs8.seed_from_der, pkcs8.seed_from_pem):
            with pytest.raises(ValueError):  # noqa: PT011 - any reason will do
                parse(garbage)

    @given(st.sampled_from([V1, V2]), st.integers(0, 200), st.binary(min_size=1, max_size=4))
    def test_a_key_damaged_anywhere_is_refused_or_complete(self, der: bytes, at: int, damage: bytes) -> None:
        at %= len(der)
        try:
            seed = pkcs8.seed_from_der(der[:at] + damage + der[at + len(damage) :])
        except ValueError:
            return
        assert len(seed) == 32

    @pytest.mark.parametrize(
        ("key", "format_", "encryption", "reason"),
        [
            (rsa.generate_private_key(65537, 1024), PrivateFormat.PKCS8, NoEncryption(), "not Ed25519"),
            (
                ec.generate_private_key(ec.SECP256R1()),
                PrivateFormat.TraditionalOpenSSL,
                NoEncryption(),
                "EC PRIVATE KEY",
            ),
            (Ed25519PrivateKey.generate(), PrivateFormat.PKCS8, BestAvailableEncryption(b"x"), "is encrypted"),
        ],
        ids=["RSA", "EC", "encrypted"],
    )
    def test_another_kind_of_key_is_refused_with_a_remedy(self, key, format_, encryption, reason: str) -> None:
        with pytest.raises(ValueError, match=reason) as refusal:
            pkcs8.seed_from_pem(key.private_bytes(Encoding.PEM, format_, encryption))
        assert "openssl" in str(refusal.value)

    @pytest.mark.parametrize(
        "text", [b"-----BEGIN PRIVATE KEY-----\n" * 100_000, b"-----BEGIN " + b"PRIVATE KEY " * 300_000]
    )
    def test_a_text_of_many_beginnings_is_refused_at_once(self, text: bytes) -> None:
        with pytest.raises(ValueError, match="holds no private key"):
            pkcs8.seed_from_pem(text)


class TestPeerCertificates:
    def test_a_name_that_cannot_be_read_is_refused(self, pki: Pki) -> None:
        der = pki.node("peer").certificate.public_bytes(Encoding.DER)
        broken = der.replace(
            bytes.fromhex("0c04") + b"Acme", bytes.fromhex("0304") + b"Acme"
        )  # a bit string, not a text
        assert broken != der
        with pytest.raises(IdentityError, match="cannot be read"):
            parse_path([broken])

    def test_a_negative_serial_number_is_refused(self, pki: Pki) -> None:
        certificate = pki.node("peer").certificate
        number = certificate.serial_number
        serial = number.to_bytes(number.bit_length() // 8 + 1, "big")
        der = certificate.public_bytes(Encoding.DER)
        negative = der.replace(serial, bytes([serial[0] | 0x80]) + serial[1:])
        assert negative != der
        with pytest.raises(IdentityError, match="cannot be read"):
            parse_path([negative])

    def test_the_certificates_of_a_path_are_returned(self, pki: Pki) -> None:
        path = [pki.node("peer").certificate, pki.organisation.certificate]
        assert parse_path([certificate.public_bytes(Encoding.DER) for certificate in path]) == path

    def test_garbage_is_refused(self) -> None:
        with pytest.raises(IdentityError, match="cannot be read"):
            parse_path([b"garbage"])

    @pytest.mark.parametrize("letter", ["x", "\x1b", "\u202e", "\n"])
    def test_a_long_name_is_cut_and_escaped_in_every_refusal(self, pki: Pki, letter: str) -> None:
        authority = named(letter * 3000)
        peer, other = named(letter * 3000, authority), rsa.generate_private_key(65537, 2048)
        with pytest.raises(IdentityError) as not_ed25519:
            peer_id_of(named(letter * 3000, authority, public_key=other.public_key()).certificate)
        path = [peer.certificate, authority.certificate]
        trusting = identity_of(create_node(authority, "node"), crls=create_crl(pki.root, []))
        refusals = {
            str(not_ed25519.value): 1,
            str(pki.identity("worker").refusal(path)): 1,
            str(trusting.revocation(path)): 2,
        }
        for refusal, names in refusals.items():
            assert "... (" in refusal
            assert len(refusal) <= 80 + names * MAX_NAME_CHARS
            assert not set(HOSTILE) & set(refusal)


class TestLoading:
    def test_the_peer_id_equals_the_one_that_libp2p_computes(self, pki: Pki) -> None:
        identity = pki.identity("worker")
        assert identity.peer_id == ID.from_pubkey(create_new_key_pair(identity.seed).public_key).to_base58()
        assert identity.peer_id.startswith("12D3KooW")

    def test_files_and_texts_give_the_same_identity(self, pki: Pki, tmp_path: Path) -> None:
        files = pki.files("worker", tmp_path)
        from_texts = Identity.from_pem(files.cert.read_bytes(), files.key.read_bytes(), files.trust.read_bytes())
        assert load(files).peer_id == from_texts.peer_id

    def test_the_seed_stays_out_of_the_printed_form(self, pki: Pki) -> None:
        identity = pki.identity("worker")
        assert repr(identity.seed)[2:-1] not in repr(identity)

    def test_loading_leaves_no_descriptor_open(self, pki: Pki) -> None:
        pki.identity("warm-up")
        before = len(list(Path("/proc/self/fd").iterdir()))
        pki.identity("worker")
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_the_certificate_of_another_key_is_refused_naming_both_files(self, pki: Pki, tmp_path: Path) -> None:
        files, other = pki.files("worker", tmp_path), pki.files("other", tmp_path)
        with pytest.raises(IdentityError, match=r"other-key.pem: .*/worker-cert.pem"):
            Identity.load(files.cert, other.key, files.trust)

    @pytest.mark.parametrize("name", ["cert", "key", "trust"])
    def test_a_missing_file_is_named(self, pki: Pki, tmp_path: Path, name: str) -> None:
        files = pki.files("worker", tmp_path)
        getattr(files, name).unlink()
        with pytest.raises(IdentityError, match=f"worker-{name}.pem: No such file"):
            load(files)

    @pytest.mark.parametrize("name", ["cert", "key", "trust"])
    @pytest.mark.parametrize(
        "content", [b"", b"\xff\x00", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    )
    def test_a_file_with_other_content_is_named(self, pki: Pki, tmp_path: Path, name: str, content: bytes) -> None:
        files = pki.files("worker", tmp_path)
        getattr(files, name).write_bytes(content)
        with pytest.raises(IdentityError, match=f"worker-{name}.pem: "):
            load(files)

    def test_an_enormous_file_is_refused(self, pki: Pki, tmp_path: Path) -> None:
        files = pki.files("worker", tmp_path)
        os.truncate(files.trust, 1 << 30)
        with pytest.raises(IdentityError, match="larger than"):
            load(files)

    def test_a_revocation_file_without_lists_is_refused(self, pki: Pki, tmp_path: Path) -> None:
        files = pki.files("worker", tmp_path)
        with pytest.raises(IdentityError, match="X509 CRL"):
            Identity.load(files.cert, files.key, files.trust, files.trust)

    @pytest.mark.parametrize(
        ("begins", "ends", "reason"), [(-9, -1, "expired on"), (1, 9, "valid from")], ids=["expired", "not yet valid"]
    )
    def test_a_certificate_out_of_its_time_is_refused(self, pki: Pki, begins: int, ends: int, reason: str) -> None:
        now = datetime.now(UTC)
        node = create_node(
            pki.organisation, "worker", not_before=now + timedelta(begins), not_after=now + timedelta(ends)
        )
        with pytest.raises(IdentityError, match=reason):
            identity_of(node)

    def test_a_list_whose_issuer_cannot_be_read_is_refused(self, pki: Pki) -> None:
        der = x509.load_pem_x509_crl(create_crl(pki.organisation, [])).public_bytes(Encoding.DER)
        broken = der.replace(bytes.fromhex("0c04") + b"Acme", bytes.fromhex("0304") + b"Acme")
        assert broken != der
        text = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(broken) + b"-----END X509 CRL-----\n"
        with pytest.raises(IdentityError, match="a revocation list cannot be read"):
            pki.identity("a", crls=text)

    def test_a_file_of_many_beginnings_of_lists_is_refused_at_once(self, pki: Pki) -> None:
        with pytest.raises(IdentityError, match="holds no PEM block"):
            pki.identity("a", crls=b"-----BEGIN X509 CRL-----\n" * 100_000)

    def test_a_trust_bundle_without_an_authority_is_refused(self, pki: Pki) -> None:
        node = pki.node("worker")
        with pytest.raises(IdentityError, match="no CA certificate"):
            identity_of(node, trust=node.certificate.public_bytes(Encoding.PEM))

    def test_hypha_certutils_bundle_of_node_and_organisation_trusts_the_organisation_only(self, pki: Pki) -> None:
        node = pki.node("worker")
        bundle = node.certificate.public_bytes(Encoding.PEM) + pki.organisation.certificate.public_bytes(Encoding.PEM)
        assert identity_of(node, trust=bundle).trust == (pki.organisation.certificate,)

    def test_an_authority_revoked_by_another_in_the_bundle_is_not_trusted(self, pki: Pki) -> None:
        bundle = pki.root.trust_pem + pki.organisation.certificate.public_bytes(Encoding.PEM)
        identity = identity_of(pki.node("worker"), trust=bundle, crls=pki.crls(pki.organisation))
        assert identity.trust == (pki.root.certificate,)


class TestWarnings:
    def warnings(self, caplog: pytest.LogCaptureFixture) -> str:
        return "\n".join(record.message for record in caplog.records if record.levelno == logging.WARNING)

    def test_a_sound_identity_gives_none(self, pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        load(pki.files("worker", tmp_path))
        assert not self.warnings(caplog)

    def test_a_key_readable_by_all(self, pki: Pki, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        files = pki.files("worker", tmp_path)
        files.key.chmod(0o644)
        load(files)
        assert "is readable by every user" in self.warnings(caplog)

    def test_a_trust_bundle_of_another_network(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        identity_of(pki.node("worker"), trust=Pki().root.trust_pem)
        assert "does not lead to it" in self.warnings(caplog)

    def test_a_chain_without_its_intermediate(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        node = pki.node("worker")
        Identity.from_pem(node.certificate.public_bytes(Encoding.PEM), node.key_pem, node.trust_pem)
        assert "does not lead to it" in self.warnings(caplog)

    def test_a_certificate_revoked_itself(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        node = pki.node("worker")
        identity_of(node, crls=pki.crls(node))
        assert "was revoked by" in self.warnings(caplog)

    def test_a_certificate_without_the_address_that_rust_nodes_look_for(
        self, pki: Pki, caplog: pytest.LogCaptureFixture
    ) -> None:
        key = Ed25519PrivateKey.generate()
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(pki.organisation.certificate.subject, x509.Name([]), key.public_key(), 7)
            .not_valid_before(now - timedelta(1))
            .not_valid_after(now + timedelta(1))
            .sign(pki.organisation.key, None)
        )
        chain = certificate.public_bytes(Encoding.PEM) + pki.organisation.certificate.public_bytes(Encoding.PEM)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        Identity.from_pem(chain, pem, pki.root.trust_pem)
        assert "IP:0.0.0.0" in self.warnings(caplog)

    def test_a_list_past_its_next_update(self, pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
        stale = create_crl(pki.organisation, next_update=datetime.now(UTC) - timedelta(hours=1))
        identity_of(pki.node("worker"), crls=create_crl(pki.root) + stale)
        assert "out of date" in self.warnings(caplog)


class TestReloading:
    def test_a_renewed_certificate_of_the_same_key_is_used(self, pki: Pki, tmp_path: Path) -> None:
        files = pki.files("worker", tmp_path)
        identity = load(files)
        renewed = create_node(pki.organisation, "renewed", key=pki_key(files.key))
        files.cert.write_bytes(renewed.cert_pem)
        assert identity.reload().chain[0] == renewed.certificate

    def test_another_peers_identity_is_refused(self, pki: Pki, tmp_path: Path) -> None:
        files = pki.files("worker", tmp_path)
        identity = load(files)
        other = pki.node("other")
        files.cert.write_bytes(other.cert_pem)
        write_private(files.key, other.key_pem)
        with pytest.raises(IdentityError, match="cannot change its peer id"):
            identity.reload()

    def test_optional_lists_are_loaded_once_their_file_exists(self, pki: Pki, tmp_path: Path) -> None:
        files = pki.files("worker", tmp_path)
        lists = tmp_path / "crl.pem"
        with pytest.raises(IdentityError, match="No such file"):
            Identity.load(files.cert, files.key, files.trust, lists)
        identity = Identity.load(files.cert, files.key, files.trust, lists, crls_optional=True)
        assert identity.crls == ()
        assert identity.files is not None
        before = identity.files.state()
        lists.write_bytes(pki.crls())
        assert identity.files.state() != before
        assert len(identity.reload().crls) == 2

    def test_the_state_changes_when_a_link_points_to_another_file(self, pki: Pki, tmp_path: Path) -> None:
        pki.files("worker", tmp_path / "1")
        pki.files("worker", tmp_path / "2")
        (tmp_path / "now").symlink_to("1")
        files = IdentityFiles(*(tmp_path / "now" / f"worker-{kind}.pem" for kind in ("cert", "key", "trust")))
        before = files.state()
        assert files.state() == before
        (tmp_path / "new").symlink_to("2")
        (tmp_path / "new").rename(tmp_path / "now")
        assert files.state() != before


def pki_key(path: Path) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(pkcs8.seed_from_pem(path.read_bytes()))
