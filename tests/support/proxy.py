"""An HTTP proxy (CONNECT) whose every tunnel ends at one server, with TLS that it intercepts or passes on."""

import contextlib
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e2e.cluster.pki import Authority


class Proxy(http.server.ThreadingHTTPServer):
    """A proxy on loopback.

    Attributes:
        asked: the targets that clients asked for.
        status: what it answers; 200 opens a tunnel.
    """

    daemon_threads = True

    def __init__(
        self, upstream: tuple[str, int], intercepting: ssl.SSLContext | None, own: ssl.SSLContext | None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        if own:
            self.socket = own.wrap_socket(self.socket, server_side=True)
        self.url = f"{'https' if own else 'http'}://127.0.0.1:{self.server_port}"
        self.upstream, self.intercepting = upstream, intercepting
        self.asked: list[str] = []
        self.status = 200

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that does not trust the proxy is part of the tests


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, *_: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        proxy = self.server
        proxy.asked.append(self.path)
        self.close_connection = True
        self.send_response(proxy.status)
        if proxy.status != 200:
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.end_headers()
        client = self.connection
        if proxy.intercepting and not self.path.endswith(":80"):
            client = proxy.intercepting.wrap_socket(client, server_side=True)
        with socket.create_connection(proxy.upstream) as upstream:
            back = threading.Thread(target=_copy, args=(upstream, client), daemon=True)
            back.start()
            _copy(client, upstream)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def context(authority: Authority, *hosts: str) -> ssl.SSLContext:
    """Return the TLS context of a server with these names."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*authority.issue(hosts[0], hosts[0], hosts=hosts))
    return made


@contextlib.contextmanager
def open_proxy(upstream: str, directory: Path, *intercepted: str, encrypted: bool = False) -> Iterator[Proxy]:
    """Serve a proxy whose tunnels end at a plain HTTP server.

    Args:
        upstream: the URL of that server.
        directory: for the authority of the certificates.
        intercepted: the hosts for whose TLS it has certificates.
        encrypted: whether clients speak TLS to the proxy itself.
    """
    authority = Authority(directory)
    host, _, port = upstream.removeprefix("http://").partition(":")
    own = context(authority, "127.0.0.1") if encrypted else None
    with Proxy((host, int(port)), context(authority, *intercepted), own) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
        yield proxy
        proxy.shutdown()
