"""Certificates and kubeconfigs of a cluster."""

import os
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID: Final = timedelta(days=365)


class Authority:
    """A certificate authority in a directory: `ca.crt`, `ca.key`, and its certificates. The first use creates it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = directory / "ca.crt"
        if not self.ca.exists():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cluster")])
            certificate = (
                _builder(name, name, key)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(authority=True), critical=True)
                .sign(key, hashes.SHA256())
            )
            write_private(directory / "ca.key", _pem(key))
            write_private(self.ca, certificate.public_bytes(serialization.Encoding.PEM))
        self._certificate = x509.load_pem_x509_certificate(self.ca.read_bytes())
        kept_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        if not isinstance(kept_key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{directory / 'ca.key'} is not a key that this program made: remove {directory}")
        self._key = kept_key

    def issue(
        self, name: str, user: str, groups: tuple[str, ...] = (), hosts: tuple[str, ...] = ()
    ) -> tuple[Path, Path]:
        """Return the files of a certificate and its key. The first call makes them.

        Args:
            name: The name of the files.
            user: The user (common name) that it stands for.
            groups: The user's groups (organisations).
            hosts: Names and addresses of the server that it stands for.
        """
        certificate_file, key_file = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if certificate_file.exists():
            return certificate_file, key_file
        key = ec.generate_private_key(ec.SECP256R1())
        organisations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject = x509.Name([*organisations, x509.NameAttribute(NameOID.COMMON_NAME, user)])
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        builder = (
            _builder(subject, self._certificate.subject, key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False
            )
        write_private(key_file, _pem(key))
        certificate = builder.sign(self._key, hashes.SHA256())
        write_private(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
        return certificate_file, key_file

    def signing_key(self, name: str) -> Path:
        """Return the file of a private key that signs tokens. The first call makes it."""
        path = self.directory / f"{name}.key"
        if not path.exists():
            write_private(path, _pem(ec.generate_private_key(ec.SECP256R1())))
        return path

    def kubeconfig(self, path: Path, url: str, user: str, groups: tuple[str, ...] = ()) -> Path:
        """Write a kubeconfig (0600) for a user with a certificate."""
        certificate, key = self.issue(path.stem, user, groups)
        return write_kubeconfig(path, url, self.ca, {"client-certificate": str(certificate), "client-key": str(key)})


def write_kubeconfig(path: Path, url: str, ca: Path, credentials: dict[str, str], namespace: str = "default") -> Path:
    """Write a kubeconfig (0600) with one context; `credentials` is a user's `AuthInfo` in terms of Kubernetes."""
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "hypha", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "hypha", "user": credentials}],
        "contexts": [{"name": "hypha", "context": {"cluster": "hypha", "user": "hypha", "namespace": namespace}}],
        "current-context": "hypha",
    }
    return write_private(path, yaml.safe_dump(config).encode())


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + _VALID)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def write_private(path: Path, content: bytes) -> Path:
    """Write a file that only its owner can read, unless it holds the content already, because programs watch it."""
    if path.exists() and path.read_bytes() == content:
        return path
    temporary = path.with_name(f".{path.name}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        file.write(content)
    return temporary.rename(path)
