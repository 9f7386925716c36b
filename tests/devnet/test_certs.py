from pathlib import Path

import pytest
from cryptography import x509

from hypha_devnet import certs
from hypha_network.identity import Identity


def identity(directory: Path, name: str, crls: Path | None = None) -> Identity:
    return Identity.load(*(directory / f"{name}-{kind}.pem" for kind in ("cert", "key", "trust")), crls)


def test_a_network_is_made_and_its_nodes_are_sound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = certs.make(tmp_path, "Acme", ["gateway", "worker"])
    assert {path.name for path in written} >= {"root-cert.pem", "organisation-key.pem", "worker-key.pem", "crls.pem"}
    assert identity(tmp_path, "gateway").peer_id != identity(tmp_path, "worker", tmp_path / "crls.pem").peer_id
    assert not caplog.records


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    certs.make(tmp_path, "Acme", ["worker"])
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*-key.pem")} == {0o600}


def test_existing_certificates_are_kept(tmp_path: Path) -> None:
    certs.make(tmp_path, "Acme", ["worker"])
    before = identity(tmp_path, "worker").peer_id
    assert certs.make(tmp_path, "Acme", ["worker"]) == []
    certs.make(tmp_path, "Acme", ["other"])
    assert identity(tmp_path, "worker").peer_id == before
    assert identity(tmp_path, "other").trust == identity(tmp_path, "worker").trust


def test_revocations_add_up(tmp_path: Path) -> None:
    certs.make(tmp_path, "Acme", ["a", "b", "c"])
    certs.make(tmp_path, "Acme", [], revoked=["a"])
    certs.make(tmp_path, "Acme", [], revoked=["b"])
    careful = identity(tmp_path, "c", tmp_path / "crls.pem")
    for name, revoked in {"a": True, "b": True, "c": False}.items():
        chain = [*identity(tmp_path, name).chain, careful.trust[0]]
        assert bool(careful.revocation(chain)) is revoked, name


def test_revoking_an_unknown_node_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nobody-cert\.pem"):
        certs.make(tmp_path, "Acme", [], revoked=["nobody"])


def test_a_nodes_certificate_has_the_fields_that_rust_nodes_require() -> None:
    node = certs.create_node(certs.create_organisation(certs.create_root(), "Acme"), "worker.acme")
    names = node.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(address) for address in names.get_values_for_type(x509.IPAddress)} == {"0.0.0.0"}
    assert names.get_values_for_type(x509.DNSName) == ["worker.acme"]
    usages = node.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH}
