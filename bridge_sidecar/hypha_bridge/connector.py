"""The node's connector API, called from worker threads.

Bulk data moves in blocking calls with large buffers: nothing runs per byte or per turn of an event loop. A call is one
attempt; `retrying` repeats it while the node is away (it may be restarted at any time) or a peer does not answer.
"""

import contextlib
import http.client
import io
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple, Protocol, TypeVar, cast
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from hypha_bridge.errors import ConnectorError
from hypha_bridge.pinned import PinnedConnection, WrongNode
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_messages.types import PeerId

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_BUFFER_BYTES: Final = 1024 * 1024
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_ANSWER_S: Final = 90  # of a request without bulk data; the node itself gives a peer less
_STALL_S: Final = 900  # without a byte in either direction; a busy receiver may make a sender wait for minutes
_FIRST_DELAY_S: Final = 0.1
_LAST_DELAY_S: Final = 5.0
_RETRYABLE: Final = frozenset({401, 500, 502, 503, 504})  # 401: a node that starts does not know its jobs yet


class Sink(Protocol):
    """Takes what is streamed."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes, before they are overwritten."""


class Slice(BaseModel):
    """A slice as the scheduler assigned it."""

    provider: PeerId
    index: int


class Attempts(NamedTuple):
    """How often and how long something is tried: delays grow from `first_s` to `last_s` until `deadline_s` is over."""

    deadline_s: float
    first_s: float = _FIRST_DELAY_S
    last_s: float = _LAST_DELAY_S

    def delays(self) -> Iterator[float]:
        """Yield the waits between attempts, until the deadline; it runs from the first failure."""
        started = time.monotonic()
        delay = self.first_s
        while time.monotonic() - started + delay < self.deadline_s:
            yield delay
            delay = min(2 * delay, self.last_s)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("connector")
        self._path = path
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # http.client forgets its own early

    def connect(self) -> None:
        self.stream.settimeout(_ANSWER_S)
        self.stream.connect(self._path)
        self.sock = self.stream

    def close(self) -> None:
        super().close()
        self.stream.close()


_Connection = _UnixConnection | PinnedConnection


class Connector:
    """Calls the node on behalf of one job. Thread-safe; every call has its own connection."""

    def __init__(self, config: ConnectorConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._closed = threading.Event()

    def close(self) -> None:
        """Break what is under way; whoever waits gets a ConnectorError."""
        self._closed.set()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    # Below TLS, whose own shutdown takes the connection out of the hands of the thread that uses it.
                    socket.socket.shutdown(connection.stream, socket.SHUT_RDWR)

    def retrying(self, action: Callable[[], _Result]) -> _Result:
        """Repeat an action whose ConnectorError is retryable, until it succeeds or the deadline is over."""
        delays: Iterator[float] | None = None
        while True:
            try:
                return action()
            except ConnectorError as error:
                delays = delays or Attempts(self._config.deadline_s).delays()
                delay = next(delays, None) if error.retryable else None
                if delay is None:
                    raise
                logger.info("trying again in %.1f s: %s", delay, error)
                if self._closed.wait(delay):
                    raise

    def next_slice(self, scheduler: str, dataset: str) -> Slice:
        """Ask the scheduler which slice comes next; ConnectorError."""
        answer = self._call("/slices/next", {"scheduler": scheduler, "dataset": dataset})
        try:
            return Slice.model_validate_json(answer)
        except ValidationError as error:
            raise _nonsense("/slices/next", answer) from error

    def pull(self, provider: str, dataset: str, index: int, sink: Sink) -> None:
        """Stream a slice into a sink; ConnectorError, after which the sink may hold a part."""
        body = json.dumps({"provider": provider, "dataset": dataset, "index": index}).encode()
        with self._request("POST", "/slices/pull", body) as response:
            _drain(response, sink)

    def push(self, peer: str, file: BinaryIO) -> None:
        """Push a file to a peer; returns once the peer has all of it. ConnectorError."""
        with self._request("POST", f"/pushes?peer={quote(peer, safe='')}", file):
            pass

    def take_push(self, open_sink: Callable[[], Sink]) -> str | None:
        """Wait some seconds for a push and stream it into a sink; its sender, None if none came. ConnectorError."""
        with self._request("GET", "/pushes", None) as response:
            if response.status == http.client.NO_CONTENT:
                return None
            peer = response.headers.get("Hypha-Peer")
            if peer is None:
                raise _nonsense("/pushes", b"a push without the header Hypha-Peer")
            _drain(response, open_sink())
            return peer

    def progress(self, progress: object) -> bytes:
        """Report progress and return the scheduler's answer (JSON); ConnectorError."""
        return self._call("/progress", progress)

    def _call(self, path: str, body: object) -> bytes:
        with self._request("POST", path, json.dumps(body).encode()) as response:
            return response.read(_MAX_ANSWER_BYTES)

    @contextlib.contextmanager
    def _request(self, method: str, path: str, body: bytes | BinaryIO | None) -> Iterator[http.client.HTTPResponse]:
        """Make one request; broken connections and error answers become ConnectorError, in the body of the with too."""
        connection = self._new_connection()
        try:
            token = self._config.token_file.read_text().strip()
            connection.connect()
            with self._lock:
                self._open.add(connection)
            if self._closed.is_set():
                raise ConnectionAbortedError("the bridge is stopping")
            _send(connection, method, path, token, body)
            response = connection.getresponse()
            if response.status not in (http.client.OK, http.client.NO_CONTENT):
                raise _refusal(response, path)
            connection.stream.settimeout(_STALL_S)
            yield response
        except WrongNode as error:
            logger.warning("refused to say anything: %s", error)
            raise ConnectorError(503, "wrong_node", str(error), retryable=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectorError(
                503,
                "unavailable",
                f"the worker node did not complete {path} ({type(error).__name__}: {error}); it may be restarting",
                retryable=True,
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _new_connection(self) -> _Connection:
        config = self._config
        if config.url is not None and config.peer_id is not None:
            return PinnedConnection(config.url, config.peer_id, _ANSWER_S)
        return _UnixConnection(os.fspath(config.uds or ""))


def _send(connection: _Connection, method: str, path: str, token: str, body: bytes | BinaryIO | None) -> None:
    connection.putrequest(method, path)
    connection.putheader("Authorization", f"Bearer {token}")
    if body is None:
        connection.endheaders()
    elif isinstance(body, bytes):
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
    else:
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(os.fstat(body.fileno()).st_size))
        connection.endheaders()
        connection.stream.settimeout(_STALL_S)
        # A node that refuses early answers and closes; its answer says more than the broken pipe.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            _send_file(connection.stream, body)


def _send_file(stream: socket.socket, file: BinaryIO) -> None:
    if not isinstance(stream, ssl.SSLSocket):
        stream.sendfile(file)
        return
    buffer = memoryview(bytearray(_BUFFER_BYTES))  # its own `sendfile` takes 8 KiB at a time
    while count := cast("io.BufferedReader", file).readinto(buffer):
        stream.sendall(buffer[:count])


def _drain(response: http.client.HTTPResponse, sink: Sink) -> None:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while count := response.readinto(buffer):
        sink.write(buffer[:count])
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _refusal(response: http.client.HTTPResponse, path: str) -> ConnectorError:
    answer = response.read(_MAX_ANSWER_BYTES)
    try:
        refusal = json.loads(answer)
        code, detail = str(refusal["error"]), str(refusal["detail"])
    except (ValueError, KeyError, TypeError):
        code, detail = "connector_error", f"the worker node answered {path} with {response.status}: {answer[:200]!r}"
    return ConnectorError(response.status, code, detail, retryable=response.status in _RETRYABLE)


def _nonsense(path: str, answer: bytes) -> ConnectorError:
    detail = f"the worker node answered {path} with {answer[:200]!r}; are node and bridge of the same version?"
    return ConnectorError(502, "connector_error", detail, retryable=False)
