"""A client of the node's connector API, for worker threads.

Bulk data moves in blocking calls with large buffers, so no work is done per byte or per turn of an event loop. A call
is one attempt. `retrying` repeats it while the node does not answer, because it may restart at any time, or while a
peer does not answer.
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
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, Protocol, TypeVar, cast
from urllib.parse import quote

from pydantic import ValidationError

from hypha_bridge.errors import ConnectorError
from hypha_bridge.pinned import PinnedConnection, WrongNode
from hypha_contracts.backoff import Backoff
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_contracts.connector_api import (
    ANSWER_TIMEOUT_S,
    NEXT_SLICE,
    PULL_SLICE,
    PUSH,
    RECEIVER_PARAMETER,
    REPORT_PROGRESS,
    REPORT_TELEMETRY,
    SENDER_HEADER,
    STALL_TIMEOUT_S,
    TAKE_PUSH,
    AssignedSlice,
    Call,
    ErrorBody,
    NextSlice,
    PullSlice,
)
from hypha_contracts.trace_context import HEADER

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_BUFFER_BYTES: Final = 1024 * 1024
_MAX_ANSWER_BYTES: Final = 1024 * 1024
BACKOFF: Final = Backoff(first_s=0.1, max_s=5.0)
_RETRYABLE: Final = frozenset({401, 500, 502, 503, 504})  # 401: a starting node does not know its jobs yet


class Sink(Protocol):
    """Receives streamed data."""

    def write(self, data: memoryview) -> None:
        """Take the next bytes. The buffer is overwritten afterwards."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("connector")
        self._path = path
        self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # http.client drops its own reference early

    def connect(self) -> None:
        self.stream.settimeout(ANSWER_TIMEOUT_S)
        self.stream.connect(self._path)
        self.sock = self.stream

    def close(self) -> None:
        super().close()
        self.stream.close()


_Connection = _UnixConnection | PinnedConnection


class Connector:
    """Calls the node on behalf of one job. Thread-safe; every call has its own connection.

    Args:
        traceparent: returns the span in which a call is made, for the node.
    """

    def __init__(self, config: ConnectorConfig, traceparent: Callable[[], str | None] = lambda: None) -> None:
        self._config = config
        self._traceparent = traceparent
        self._lock = threading.Lock()
        self._open: set[_Connection] = set()
        self._closed = threading.Event()

    def close(self) -> None:
        """Break all calls in progress; each raises ConnectorError."""
        self._closed.set()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    # On the socket below TLS, because the shutdown of TLS would interfere with the thread that uses it.
                    socket.socket.shutdown(connection.stream, socket.SHUT_RDWR)

    def retrying(self, action: Callable[[], _Result]) -> _Result:
        """Repeat an action while its ConnectorError is retryable, until it succeeds or the deadline passes."""
        pauses: Iterator[float] | None = None
        while True:
            try:
                return action()
            except ConnectorError as error:
                pauses = pauses or BACKOFF.pauses(self._config.deadline_s)
                pause_s = next(pauses, None) if error.retryable else None
                if pause_s is None:
                    raise
                logger.info("trying again in %.1f s: %s", pause_s, error)
                if self._closed.wait(pause_s):
                    raise

    def next_slice(self, scheduler: str, dataset: str) -> AssignedSlice:
        """Ask the scheduler for the next slice; ConnectorError."""
        wanted = NextSlice(scheduler=scheduler, dataset=dataset)
        answer = self._call(NEXT_SLICE, wanted.model_dump(mode="json"))
        try:
            return AssignedSlice.model_validate_json(answer)
        except ValidationError as error:
            raise _invalid_answer(NEXT_SLICE, answer) from error

    def pull(self, provider: str, dataset: str, index: int, sink: Sink) -> None:
        """Stream a slice into a sink; after a ConnectorError the sink may hold part of it."""
        wanted = PullSlice(provider=provider, dataset=dataset, index=index)
        with self._request(PULL_SLICE, wanted.model_dump_json().encode()) as response:
            _drain(response, sink)

    def push(self, peer: str, file: BinaryIO) -> None:
        """Push a file to a peer and return when the peer has received all of it; ConnectorError."""
        with self._request(PUSH, file, query=f"?{RECEIVER_PARAMETER}={quote(peer, safe='')}"):
            pass

    def take_push(self, open_sink: Callable[[str], Sink]) -> str | None:
        """Wait some seconds for a push and stream it into `open_sink(sender)`. Return its sender or None.

        Raises ConnectorError. The push breaks off if the sink raises an error.
        """
        with self._request(TAKE_PUSH, None) as response:
            if response.status == http.client.NO_CONTENT:
                return None
            peer = response.headers.get(SENDER_HEADER)
            if peer is None:
                raise _invalid_answer(TAKE_PUSH, f"a push without the header {SENDER_HEADER}".encode())
            _drain(response, open_sink(peer))
            return peer

    def progress(self, progress: object) -> bytes:
        """Report progress and return the scheduler's answer (JSON); ConnectorError."""
        return self._call(REPORT_PROGRESS, progress)

    def report_telemetry(self, batch: object) -> None:
        """Send spans and metrics once; ConnectorError."""
        self._call(REPORT_TELEMETRY, batch)

    def _call(self, call: Call, body: object) -> bytes:
        with self._request(call, json.dumps(body).encode()) as response:
            return response.read(_MAX_ANSWER_BYTES)

    @contextlib.contextmanager
    def _request(
        self, call: Call, body: bytes | BinaryIO | None, query: str = ""
    ) -> Iterator[http.client.HTTPResponse]:
        """Make one request. ConnectorError for broken connections, also in the body of the `with`, and for refusals."""
        connection = self._new_connection()
        try:
            token = self._config.token_file.read_text().strip()
            connection.connect()
            with self._lock:
                self._open.add(connection)
            if self._closed.is_set():
                raise ConnectionAbortedError("the bridge is stopping")
            headers = {"Authorization": f"Bearer {token}"}
            if traceparent := self._traceparent():
                headers[HEADER] = traceparent
            _send(connection, call, query, headers, body)
            response = connection.getresponse()
            if response.status not in (http.client.OK, http.client.NO_CONTENT):
                raise _refusal(response, call)
            connection.stream.settimeout(STALL_TIMEOUT_S)
            yield response
        except WrongNode as error:
            logger.warning("sent no request: %s", error)
            raise ConnectorError(503, "wrong_node", str(error), retryable=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectorError(
                503,
                "unavailable",
                f"the worker node did not complete {call} ({type(error).__name__}: {error}); it may be restarting",
                retryable=True,
            ) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _new_connection(self) -> _Connection:
        config = self._config
        if config.url is not None and config.peer_id is not None:
            return PinnedConnection(config.url, config.peer_id, ANSWER_TIMEOUT_S)
        return _UnixConnection(os.fspath(config.uds or ""))


def _send(
    connection: _Connection, call: Call, query: str, headers: Mapping[str, str], body: bytes | BinaryIO | None
) -> None:
    connection.putrequest(call.method, call.path + query)
    for name, value in headers.items():
        connection.putheader(name, value)
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
        connection.stream.settimeout(STALL_TIMEOUT_S)
        # A node that refuses early answers and closes. Its answer explains more than the broken pipe.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            _send_file(connection.stream, body)


def _send_file(stream: socket.socket, file: BinaryIO) -> None:
    if not isinstance(stream, ssl.SSLSocket):
        stream.sendfile(file)
        return
    buffer = memoryview(bytearray(_BUFFER_BYTES))  # its own `sendfile` sends 8 KiB at a time
    while count := cast("io.BufferedReader", file).readinto(buffer):
        stream.sendall(buffer[:count])


def _drain(response: http.client.HTTPResponse, sink: Sink) -> None:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while count := response.readinto(buffer):
        sink.write(buffer[:count])
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)


def _refusal(response: http.client.HTTPResponse, call: Call) -> ConnectorError:
    answer = response.read(_MAX_ANSWER_BYTES)
    try:
        refusal = ErrorBody.model_validate_json(answer)
        code, detail = refusal.error, refusal.detail
    except ValidationError:
        code, detail = "connector_error", f"the worker node answered {call} with {response.status}: {answer[:200]!r}"
    return ConnectorError(response.status, code, detail, retryable=response.status in _RETRYABLE)


def _invalid_answer(call: Call, answer: bytes) -> ConnectorError:
    detail = f"the worker node answered {call} with {answer[:200]!r}; are node and bridge of the same version?"
    return ConnectorError(502, "connector_error", detail, retryable=False)
