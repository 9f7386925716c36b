"""The bridge in another pod than its node, which it identifies by its key. Its environment holds its configuration."""

import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from hypha_bridge.config import ConfigError, parse
from hypha_bridge.connector import Connector
from hypha_bridge.errors import ConnectorError
from hypha_contracts.bridge_config import BridgeConfig, ConnectorConfig
from hypha_messages.types import peer_id_from_ed25519
from support.waiting import until

from .conftest import OTHER, job

TOKEN = "a-token"
Key = Ed25519PrivateKey | ec.EllipticCurvePrivateKey


class Server(http.server.ThreadingHTTPServer):
    """An HTTPS server that records its requests."""

    daemon_threads = True

    def __init__(self, key: Key, directory: Path, *, valid_days: int = 1, newest: ssl.TLSVersion | None = None) -> None:
        self.heard: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        certificate = directory / "server.pem"
        certificate.write_bytes(_certificate(key, valid_days))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        if newest:
            self._context.maximum_version = newest

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server_address[1]}"

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            secured = self._context.wrap_socket(request, server_side=True)
        except OSError:
            return  # the client did not like it
        with secured:
            super().finish_request(secured, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.heard.append(str(self.headers["Authorization"]))
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


def _certificate(key: Key, valid_days: int) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=valid_days))
        .sign(key, None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256())
    )
    encoding, pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, pem, serialization.NoEncryption()) + certificate.public_bytes(encoding)


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def peer_id(key: Ed25519PrivateKey) -> str:
    return peer_id_from_ed25519(key.public_key().public_bytes_raw())


def client(server: Server, expected: str, directory: Path) -> Connector:
    (directory / "token").write_text(TOKEN)
    return Connector(ConnectorConfig(url=server.url, peer_id=expected, token_file=directory / "token", deadline_s=0.2))


@pytest.mark.parametrize("valid_days", [1, -1])
def test_a_node_is_identified_by_its_key_and_not_by_its_certificates_names(tmp_path: Path, valid_days: int) -> None:
    key = Ed25519PrivateKey.generate()
    with serving(Server(key, tmp_path, valid_days=valid_days)) as server:
        assert client(server, peer_id(key), tmp_path).progress("update") == b"{}"
        assert server.heard == [f"Bearer {TOKEN}"]


@pytest.mark.parametrize("key", [Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())])
def test_the_token_is_not_sent_to_another_node(tmp_path: Path, key: Key, caplog: pytest.LogCaptureFixture) -> None:
    with serving(Server(key, tmp_path)) as server:
        with pytest.raises(ConnectorError, match=f"not the worker {OTHER}") as caught:
            client(server, OTHER, tmp_path).progress("update")
        assert (caught.value.code, caught.value.retryable) == ("wrong_node", True)
        assert server.heard == []
        assert "sent no request" in caplog.text


def test_a_node_with_older_tls_is_refused(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    with serving(Server(key, tmp_path, newest=ssl.TLSVersion.TLSv1_2)) as server:
        with pytest.raises(ConnectorError):
            client(server, peer_id(key), tmp_path).progress("update")
        assert server.heard == []


def test_closing_ends_waiting_calls(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    server = Server(key, tmp_path)
    connector = client(server, peer_id(key), tmp_path)
    asked, stop = threading.Event(), threading.Event()

    def never_answer(_handler: _Handler) -> None:
        asked.set()
        stop.wait(20)

    failures: list[ConnectorError] = []

    def ask() -> None:
        try:
            connector.progress("update")
        except ConnectorError as error:
            failures.append(error)

    handler = type("Silent", (_Handler,), {"do_POST": never_answer})
    server.RequestHandlerClass = handler
    with serving(server):
        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(10)
        connector.close()
        thread.join(10)
        stop.set()
    assert [failure.code for failure in failures] == ["unavailable"]


@pytest.mark.parametrize(
    "connector",
    [
        {},
        {"uds": "/s", "url": "https://n:1", "peer_id": OTHER},
        {"url": "https://n:1"},
        {"uds": "/s", "peer_id": OTHER},
        {"url": "http://n:1", "peer_id": OTHER},
        {"url": "https://n:1/path", "peer_id": OTHER},
        {"url": "https://n:1", "peer_id": "12D3"},
    ],
)
def test_a_connector_without_its_peer_id_or_url_is_refused(connector: dict[str, str]) -> None:
    settings = {"job_file": "/j", "work_dir": "/w", "socket": "/s", "state_dir": "/d"}
    settings |= {"connector": connector | {"token_file": "/t"}}
    with pytest.raises(ConfigError, match=r"\$HYPHA_BRIDGE_CONFIG: connector"):
        parse(BridgeConfig, json.dumps(settings), "$HYPHA_BRIDGE_CONFIG")


def test_a_bridge_in_an_empty_volume_makes_its_directories(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job()))
    volume = tmp_path / "volume"
    volume.mkdir()
    settings = {
        "job_file": str(tmp_path / "job.json"),
        "work_dir": str(volume / "work"),
        "socket": str(volume / "work" / "bridge.sock"),
        "state_dir": str(volume / "state"),
        "connector": {"url": "https://localhost:1", "peer_id": OTHER, "token_file": str(tmp_path / "token")},
    }
    environment = os.environ | {"HYPHA_BRIDGE_CONFIG": json.dumps(settings)}
    with subprocess.Popen([sys.executable, "-m", "hypha_bridge"], env=environment) as process:
        try:
            until(lambda: _answers(volume / "work" / "bridge.sock"))
            for made in ("work", "work/tmp", "state"):
                assert (volume / made).stat().st_mode & 0o777 == 0o700
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_a_bridge_without_a_configuration_explains_how_to_give_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hypha_bridge"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "give --config FILE, or set HYPHA_BRIDGE_CONFIG" in done.stderr
