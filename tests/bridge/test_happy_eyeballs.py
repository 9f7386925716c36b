"""A host with several addresses is reached by those that answer, and by checked addresses alone."""

import contextlib
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.cluster.pki import Authority
from hypha_bridge.address_policy import RestrictedTransport
from hypha_bridge.errors import BridgeError
from hypha_bridge.happy_eyeballs import Address, connect_to_any
from hypha_contracts.addresses import reachable_blocks

HOST = "files.example"
SILENT = "127.0.0.2"
ANSWERING = "127.0.0.1"
REFUSING = "127.0.0.3"


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer((ANSWERING, 0), _Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def port(server: http.server.ThreadingHTTPServer) -> Iterator[int]:
    """The server's port, at which another address of this machine does not answer: its queue is full."""
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server((SILENT, server.server_port), backlog=0))
        while True:
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0.1)
            try:
                waiting.connect(silent.getsockname())
            except TimeoutError:
                break
        yield server.server_port


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def getaddrinfo(_host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def client(context: ssl.SSLContext | None = None, *exclude: str) -> httpx.Client:
    blocks = reachable_blocks(exclude, allow_private_addresses=True)
    transport = RestrictedTransport(blocks, context or ssl.create_default_context())
    return httpx.Client(transport=transport, timeout=httpx.Timeout(10, connect=5))


@pytest.mark.parametrize("first", [(SILENT,), (REFUSING,), (SILENT, REFUSING, SILENT)])
def test_an_address_that_does_not_answer_delays_the_next_one_by_a_moment(
    monkeypatch: pytest.MonkeyPatch, port: int, first: tuple[str, ...]
) -> None:
    resolve_to(monkeypatch, *first, ANSWERING)
    began = time.monotonic()
    with client() as files:
        assert files.get(f"http://{HOST}:{port}/").text == "ok"
    assert time.monotonic() - began < 4


def test_the_first_address_is_preferred_if_it_answers(server: http.server.ThreadingHTTPServer) -> None:
    def address(host: str) -> Address:
        return Address(socket.AF_INET, (host, server.server_port))

    with connect_to_any([address(ANSWERING), address(SILENT)], 5) as connected:
        assert connected.getpeername() == (ANSWERING, server.server_port)


def test_no_address_that_answers_is_an_error_after_the_time_limit(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    addresses = [Address(socket.AF_INET, (SILENT, port))] * 2
    with pytest.raises(TimeoutError, match=r"no address of the host answered within 0\.5 s"):
        connect_to_any(addresses, 0.5)
    resolve_to(monkeypatch, REFUSING, REFUSING)
    with client() as files, pytest.raises(httpx.ConnectError, match="Connection refused"):
        files.get(f"http://{HOST}:{port}/")


def test_both_families_take_turns(monkeypatch: pytest.MonkeyPatch, server: http.server.ThreadingHTTPServer) -> None:
    """Eight IPv6 addresses of a machine without a route for them delay the only IPv4 address by none of them."""
    unrouted = [Address(socket.AF_INET6, (f"100::{number:x}", server.server_port, 0, 0)) for number in range(1, 9)]
    with connect_to_any([*unrouted, Address(socket.AF_INET, (ANSWERING, server.server_port))], 5) as connected:
        assert connected.family == socket.AF_INET


def test_a_host_one_of_whose_addresses_is_not_allowed_is_not_connected_to_at_all(
    monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    resolve_to(monkeypatch, SILENT, ANSWERING)
    with client(None, f"{ANSWERING}/32") as files, pytest.raises(BridgeError) as refusal:
        files.get(f"http://{HOST}:{port}/")
    assert refusal.value.status == 403


@pytest.mark.parametrize("name", [HOST, "other.example"])
def test_tls_verifies_the_name_of_the_host_at_every_address(
    monkeypatch: pytest.MonkeyPatch, server: http.server.ThreadingHTTPServer, port: int, tmp_path: Path, name: str
) -> None:
    pki = Authority(tmp_path / "pki")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.issue("server", "server", hosts=(name,)))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    resolve_to(monkeypatch, SILENT, ANSWERING)
    with client(ssl.create_default_context(cafile=pki.ca)) as files:
        if name == HOST:
            assert files.get(f"https://{HOST}:{port}/").text == "ok"
        else:
            with pytest.raises(httpx.ConnectError, match=f"Hostname mismatch.*{HOST}"):
                files.get(f"https://{HOST}:{port}/")
