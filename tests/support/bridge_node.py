"""A node's connector API as the bridge sees it, in threads, with faults on demand.

It serves HTTP/1.1 on a Unix socket as the node does, and can break off, refuse and end as a killed node does.
"""

import contextlib
import json
import os
import queue
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hypha_contracts.bridge_config import BridgeConfig
from support.unix_http import JsonHandler, UnixServer

TOKEN = "token-of-this-job"

Fault = Callable[["Handler"], None]


class FakeNode:
    """Listens on a socket, and records requests and files."""

    def __init__(self, uds: Path) -> None:
        self.uds = uds
        self.slices: dict[tuple[str, int], bytes] = {}
        self.assignments: dict[str, queue.Queue[tuple[str, int]]] = defaultdict(queue.Queue)
        self.incoming: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.reported: list[Any] = []
        self.telemetry: list[Any] = []
        self.traceparents: list[tuple[str, str | None]] = []
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.requests: list[tuple[str, Any]] = []
        self.faults: dict[str, list[Fault]] = {}
        self.refusing_peers: dict[str, int] = {}
        self.push_gate = threading.Event()
        self.push_gate.set()
        self.poll_s = 0.2
        self.waiting = 0
        """The number of calls that wait for a push; `most_waiting` is its maximum so far."""
        self.most_waiting = 0
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def start(self) -> None:
        self.uds.unlink(missing_ok=True)
        self._server = _Server(os.fspath(self.uds), self)
        self.uds.chmod(0o600)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and break the open ones, as a killed node does."""
        if self._server is not None:
            server, self._server = self._server, None
            self.uds.unlink(missing_ok=True)
            server.shutdown()
            server.server_close()
            server.break_connections()

    @contextlib.contextmanager
    def waiting_for_push(self) -> Iterator[None]:
        """Count a waiting call."""
        with self._lock:
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
        try:
            yield
        finally:
            with self._lock:
                self.waiting -= 1

    def assign(self, dataset: str, provider: str, index: int) -> None:
        self.assignments[dataset].put((provider, index))

    def answer(self, progress: Any) -> dict[str, Any]:
        """Act as the scheduler that gets a report of the job."""
        self.reported.append(progress)
        return {"type": "Ok"} if self.answers.empty() else self.answers.get_nowait()

    def take(self, peer: str, data: bytes) -> None:
        """Act as the peer that gets a push of the job."""
        self.received.put((peer, data))

    def fail_next(self, call: str, *faults: Fault) -> None:
        """Answer the next calls, such as `GET /pushes`, with these faults."""
        self.faults.setdefault(call, []).extend(faults)


class _Server(UnixServer):
    def __init__(self, uds: str, node: FakeNode) -> None:
        super().__init__(uds, Handler)
        self.node = node
        self.connections: set[Any] = set()

    def break_connections(self) -> None:
        for connection in list(self.connections):
            try:
                connection.shutdown(2)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # tests break connections off


class Handler(JsonHandler):
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    @property
    def node(self) -> FakeNode:
        return self.server.node

    def refuse(self, status: int, code: str) -> None:
        self.reply({"error": code, "detail": f"{code} for a reason"}, status)

    def stream(self, data: bytes, *, headers: dict[str, str] | None = None, whole: bool = True) -> None:
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        view = memoryview(data)
        for start in range(0, len(view), 65536):
            chunk = view[start : start + 65536]
            self.wfile.write(b"%x\r\n" % len(chunk) + chunk + b"\r\n")
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def do_GET(self) -> None:  # noqa: N802
        self.route("GET")

    def do_POST(self) -> None:  # noqa: N802
        self.route("POST")

    def route(self, method: str) -> None:
        url = urlsplit(self.path)
        faults = self.node.faults.get(f"{method} {url.path}")
        if faults:
            faults.pop(0)(self)
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.body()
            self.refuse(401, "unauthorized")
            return
        if (method, url.path) == ("GET", "/pushes"):
            self.hand_over_push()
        elif url.path == "/pushes":
            self.take_push(parse_qs(url.query)["peer"][0])
        else:
            request = json.loads(self.body())
            self.node.requests.append((url.path, request))
            self.node.traceparents.append((url.path, self.headers.get("traceparent")))
            calls = {"/slices/next": self.next_slice, "/slices/pull": self.pull, "/progress": self.progress}
            (calls | {"/telemetry": self.telemetry})[url.path](request)

    def next_slice(self, request: dict[str, Any]) -> None:
        try:
            provider, index = self.node.assignments[request["dataset"]].get_nowait()
        except queue.Empty:
            self.refuse(410, "no_slice")
        else:
            self.reply({"provider": provider, "index": index})

    def pull(self, request: dict[str, Any]) -> None:
        data = self.node.slices.get((request["dataset"], request["index"]))
        if data is None:
            self.refuse(502, "peer_failed")
        else:
            self.stream(data)

    def progress(self, request: Any) -> None:
        self.reply(self.node.answer(request))

    def telemetry(self, request: Any) -> None:
        self.node.telemetry.append(request)
        self.send_response(204)
        self.end_headers()

    def hand_over_push(self) -> None:
        with self.node.waiting_for_push():
            try:
                peer, data = self.node.incoming.get(timeout=self.node.poll_s)
            except queue.Empty:
                peer, data = "", b""
        if peer:
            self.stream(data, headers={"Hypha-Peer": peer})
        else:
            self.send_response(204)
            self.end_headers()

    def take_push(self, peer: str) -> None:
        self.node.push_gate.wait()
        if self.node.refusing_peers.get(peer, 0) > 0:
            self.node.refusing_peers[peer] -= 1
            self.refuse(502, "peer_failed")
            self.close_connection = True
            return
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        if len(data) == length:
            self.node.take(peer, data)
            self.send_response(204)
            self.end_headers()


def break_off(handler: Handler) -> None:
    """Close the connection without an answer."""
    handler.body()
    handler.close_connection = True


def unavailable(handler: Handler) -> None:
    handler.body()
    handler.refuse(503, "unavailable")


def streaming(data: bytes, *, whole: bool) -> Fault:
    """Return a fault that streams these bytes, and ends the body properly or not."""

    def fault(handler: Handler) -> None:
        handler.body()
        handler.stream(data, whole=whole)

    return fault


def safetensors(size_bytes: int, fill: bytes = b"\x07", metadata: dict[str, str] | None = None) -> bytes:
    """Return a SafeTensors file with one tensor of this many bytes."""
    entry = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}
    header = json.dumps({"__metadata__": metadata or {}, "x": entry}).encode()
    return struct.pack("<Q", len(header)) + header + fill * size_bytes


def staged(config: BridgeConfig) -> list[Path]:
    """Return the files in the bridge's own directory, without its marker."""
    assert config.state_dir is not None
    files = (path for path in config.state_dir.rglob("*") if path.is_file())
    return [path for path in files if path.name != ".hypha-bridge"]
