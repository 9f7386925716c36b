"""Jobs download from allowed addresses only."""

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from hypha_bridge.address_policy import RestrictedTransport
from hypha_bridge.errors import BridgeError
from hypha_bridge.happy_eyeballs import Address, connect_to_any
from hypha_contracts.addresses import reachable_blocks
from support.addresses import PUBLIC, SPECIAL


class _Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.hosts.append(self.headers["Host"])  # type: ignore[attr-defined]
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/here")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.hosts = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def client(*exclude_cidr: str, allow_private_addresses: bool = False) -> httpx.Client:
    blocks = reachable_blocks(exclude_cidr, allow_private_addresses=allow_private_addresses)
    return httpx.Client(transport=RestrictedTransport(blocks, ssl.create_default_context()), follow_redirects=True)


def answer_of(client: httpx.Client, monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    """Return how a request to a name with this address ends: refused, or with an attempt to connect."""
    connected: list[str] = []

    def connect_to_any(addresses: list[Address], _timeout_s: float) -> socket.socket:
        connected.extend(str(address.sockaddr[0]) for address in addresses)
        raise OSError("no network in this test")

    monkeypatch.setattr("hypha_bridge.address_policy.connect_to_any", connect_to_any)
    _resolving(monkeypatch, [[address]])
    with pytest.raises((BridgeError, httpx.ConnectError)) as refusal:
        client.get("http://name.example/")
    assert len(connected) == (0 if refusal.type is BridgeError else 1)
    return "connected" if connected else "refused"


@pytest.mark.parametrize("address", SPECIAL)
def test_no_connection_is_made_to_a_special_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with client() as guarded:
        assert answer_of(guarded, monkeypatch, address) == "refused"


@pytest.mark.parametrize("address", PUBLIC)
def test_a_connection_is_made_to_a_public_address_unless_the_owner_excludes_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with client() as guarded:
        assert answer_of(guarded, monkeypatch, address) == "connected"
    with client("0.0.0.0/0", "::/0", allow_private_addresses=True) as guarded:
        assert answer_of(guarded, monkeypatch, address) == "refused"


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "[::1]", "[::ffff:127.0.0.1]", "0"])
def test_every_notation_of_this_machines_address_is_refused(server: http.server.ThreadingHTTPServer, host: str) -> None:
    with client() as guarded, pytest.raises(BridgeError) as refusal:
        guarded.get(f"http://{host}:{server.server_port}/")
    assert refusal.value.status == 403
    assert server.hosts == []  # type: ignore[attr-defined]


def test_private_addresses_can_be_allowed(server: http.server.ThreadingHTTPServer) -> None:
    with client(allow_private_addresses=True) as open_client:
        assert open_client.get(f"http://127.0.0.1:{server.server_port}/").text == "ok"


def _resolving(monkeypatch: pytest.MonkeyPatch, answers: list[list[str]]) -> list[str]:
    """Make names resolve to these answers, one after the other; return the names that were resolved."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int | None, **_: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_a_name_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _resolving(monkeypatch, [["8.8.8.8", "10.0.0.1"]])
    with client() as guarded, pytest.raises(BridgeError):
        guarded.get("http://rebinding.example/")


def test_the_connection_goes_to_the_address_that_was_checked_and_redirects_are_checked_again(
    monkeypatch: pytest.MonkeyPatch, server: http.server.ThreadingHTTPServer
) -> None:
    """A rebinding name server answers with a public address first, then with a private one."""
    connected: list[str] = []

    def connect_to_this_machine(addresses: list[Address], timeout_s: float) -> socket.socket:
        connected.extend(str(address.sockaddr[0]) for address in addresses)
        return connect_to_any([Address(socket.AF_INET, ("127.0.0.1", server.server_port))], timeout_s)

    monkeypatch.setattr("hypha_bridge.address_policy.connect_to_any", connect_to_this_machine)
    asked = _resolving(monkeypatch, [["93.184.215.14"], ["127.0.0.1"]])
    with client() as guarded, pytest.raises(BridgeError):
        guarded.get("http://rebinding.example/away")
    assert asked == ["rebinding.example", "rebinding.example"]
    assert connected == ["93.184.215.14"]
    assert server.hosts == ["rebinding.example"]  # type: ignore[attr-defined]
