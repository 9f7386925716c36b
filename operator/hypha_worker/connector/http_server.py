"""A small HTTP/1.1 server on trio, on a Unix socket or over TLS, with one request per connection.

h11 implements the protocol. Bodies of gigabytes pass through here in large pieces, so the work per piece is small.
Clients are our own bridges, Prometheus and browsers, so a request has a short head and, if it has a body, exactly one
Content-Length. A connection is unauthenticated until the handler marks its request as authenticated. Until then it has
little time.
"""

import contextlib
import json
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

from hypha_contracts.connector_api import STALL_TIMEOUT_S, ErrorBody, ErrorCode
from hypha_network.failures import report_failure
from hypha_network.identity import Identity
from hypha_network.wire.processor import CpuBudget, charged_to
from hypha_network.wire.tls_server import ServerTlsStream
from hypha_network.wire.yamux_frames import Buffer
from hypha_worker.connector.connections import Connection, serve_connections

logger = logging.getLogger(__name__)

Handler = Callable[["Exchange"], Awaitable[None]]

_READ_BYTES: Final = 512 * 1024
_HANDSHAKE_TIMEOUT_S: Final = 5.0
HANDSHAKE_CPU_SHARE: Final = 0.25
"""The part of one core that the TLS handshakes of all clients may take together."""
_HEAD_TIMEOUT_S: Final = 5.0
_MAX_HEAD_BYTES: Final = 16 * 1024
_MAX_HEADERS: Final = 32
_MAX_PARAMETERS: Final = 8
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
_MAX_JSON_BYTES: Final = 128 * 1024

_STATUS: Final = {
    ErrorCode.INVALID: HTTPStatus.BAD_REQUEST,
    ErrorCode.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ErrorCode.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    ErrorCode.FORBIDDEN: HTTPStatus.FORBIDDEN,
    ErrorCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.NO_SLICE: HTTPStatus.GONE,
    ErrorCode.NO_SUCH_CALL: HTTPStatus.NOT_FOUND,
    ErrorCode.PEER_FAILED: HTTPStatus.BAD_GATEWAY,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.NOT_READY: HTTPStatus.SERVICE_UNAVAILABLE,
}


class HttpError(Exception):
    """Refuses a request with a code for programs, a text for people and a status, by default that of the code."""

    def __init__(self, code: ErrorCode, detail: str, status: HTTPStatus | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status or _STATUS[code]


class Disconnected(Exception):  # noqa: N818 - what the client did
    """The client has gone or violates the protocol."""


ByteStream = trio.SocketStream | ServerTlsStream
"""A connection that carries a request."""

Open = Callable[[Connection], Awaitable[ByteStream]]
"""Prepares an accepted connection for a request, for example by a TLS handshake."""


class Exchange:
    """One request and its answer.

    Args:
        stream: the connection.
        source: who made the connection.
        mark_authenticated: called once the request is authenticated. HttpError if there are too many connections.

    Attributes:
        answer_headers: headers of the answer, whatever it is.
    """

    def __init__(self, stream: ByteStream, source: str, mark_authenticated: Callable[[], None]) -> None:
        self._stream = stream
        self.source = source
        self.mark_authenticated = mark_authenticated
        self._http = h11.Connection(h11.SERVER)
        self.method = ""
        self.path = ""
        self.query: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.answer_headers: Sequence[tuple[str, str]] = ()

    async def read_head(self) -> None:
        """Receive the request up to its body. Disconnected if no bridge makes such a request."""
        with trio.fail_after(_HEAD_TIMEOUT_S):
            await self._receive_head()
        request = self._http.next_event()
        if not isinstance(request, h11.Request):
            raise Disconnected("no request")
        try:
            target = urlsplit(request.target.decode("ascii", errors="replace"))
            self.query = dict(parse_qsl(target.query, max_num_fields=_MAX_PARAMETERS))
        except ValueError as error:
            raise Disconnected(f"no request: {error}") from error
        self.method = request.method.decode("ascii")
        self.path = target.path
        self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}

    async def _receive_head(self) -> None:
        """Give h11 the data up to the end of the head. It limits neither a head that arrives at once nor its lines."""
        received = bytearray()
        while (end := _END_OF_HEAD.search(received)) is None:
            data = await self._stream.receive_some(_MAX_HEAD_BYTES)
            if not data or len(received) > _MAX_HEAD_BYTES:
                raise Disconnected("no request")
            received += data
        head = bytes(received[: end.end()]).lower()
        if len(head) > _MAX_HEAD_BYTES or head.count(b"\n") > _MAX_HEADERS:
            raise Disconnected(f"a head of more than {_MAX_HEAD_BYTES} bytes or {_MAX_HEADERS} lines")
        if b"\ntransfer-encoding" in head or head.count(b"\ncontent-length") > 1:
            raise Disconnected("a body whose length is not given by one Content-Length")
        self._http.receive_data(bytes(received))

    async def pieces(self) -> AsyncIterator[Buffer]:
        """Receive the body piece by piece. Disconnected if it breaks off."""
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while isinstance(event := await self._next_event(), h11.Data):
            yield event.data
        if not isinstance(event, h11.EndOfMessage):
            raise Disconnected("the body broke off")

    async def read_nothing(self) -> None:
        """Receive a body that must be empty. HttpError if it is not."""
        async for _ in self.pieces():
            raise HttpError(ErrorCode.INVALID, f"{self.method} {self.path} takes no body")

    async def read_json(self) -> Any:
        """Receive a JSON body. HttpError if it is invalid or too long."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > _MAX_JSON_BYTES:
                raise HttpError(ErrorCode.TOO_LARGE, f"the body is longer than {_MAX_JSON_BYTES} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HttpError(ErrorCode.INVALID, f"the body is not JSON: {error}") from error

    async def answer_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a JSON value."""
        await self.answer(json.dumps(value).encode(), "application/json", status)

    async def answer(self, body: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a body. For HEAD, only its length is sent."""
        headers = [("Content-Type", content_type), ("Content-Length", str(len(body)))]
        data = b"" if self.method == "HEAD" else body
        await self._send(self._response(status, headers), h11.Data(data=data), h11.EndOfMessage())

    async def answer_empty(self) -> None:
        """Answer 204."""
        await self._send(self._response(HTTPStatus.NO_CONTENT, []), h11.EndOfMessage())

    async def start_stream(self, headers: dict[str, str]) -> None:
        """Begin a 200 answer whose body follows in pieces. It is incomplete until `end_stream`."""
        kind = [("Content-Type", "application/octet-stream"), ("Transfer-Encoding", "chunked")]
        await self._send(self._response(HTTPStatus.OK, [*kind, *headers.items()]))

    async def send_piece(self, data: Buffer) -> None:
        """Send the next piece of the body, as fast as the client takes it."""
        await self._send(h11.Data(data=cast("bytes", data)))  # h11 passes it through untouched

    async def end_stream(self) -> None:
        """Complete the body."""
        await self._send(h11.EndOfMessage())

    @property
    def answered(self) -> bool:
        """Whether the answer has begun."""
        return self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @asynccontextmanager
    async def until_disconnected(self) -> AsyncIterator[None]:
        """Cancel the code inside when the client goes away. Disconnected. Use it after the body has been read."""
        gone = False
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gone
                await trio.lowlevel.wait_readable(self._stream.socket.fileno())
                gone = True  # more data would violate one request per connection
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                yield
            except Exception as error:  # raised below, not in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if gone:
            raise Disconnected("the client went away")

    def _response(self, status: HTTPStatus, headers: list[tuple[str, str]]) -> h11.Response:
        headers = [*headers, *self.answer_headers, ("Connection", "close")]
        return h11.Response(status_code=status, headers=headers, reason=status.phrase)

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            with _stall_timeout():
                self._http.receive_data(cast("bytes", await self._stream.receive_some(_READ_BYTES)))
        return event

    async def _send(self, *events: Any) -> None:
        parts: list[Buffer] = []
        for event in events:
            parts += self._http.send_with_data_passthrough(event) or []
        with _stall_timeout():
            await self._stream.send_all(b"".join(parts))


@contextmanager
def _stall_timeout() -> Iterator[None]:
    try:
        with trio.fail_after(STALL_TIMEOUT_S):
            yield
    except trio.TooSlowError as error:
        raise Disconnected("the client neither reads nor writes") from error


async def serve(listeners: Sequence[trio.SocketListener], handler: Handler, open_stream: Open) -> None:
    """Answer every request with `await handler(exchange)`, until cancelled."""

    async def serve_connection(connection: Connection) -> None:
        def mark_authenticated() -> None:
            if not connection.mark_authenticated():
                raise HttpError(ErrorCode.UNAVAILABLE, "the node serves as many calls as it can. Try again later.")

        try:
            with trio.fail_after(_HANDSHAKE_TIMEOUT_S):
                stream = await open_stream(connection)
        except (trio.BrokenResourceError, trio.TooSlowError) as error:
            logger.debug("no request: %s", str(error) or type(error).__name__)
            return
        try:
            await _serve_one(handler, Exchange(stream, connection.source, mark_authenticated))
        finally:
            await stream.aclose()

    await serve_connections(listeners, serve_connection)


async def _serve_one(handler: Handler, exchange: Exchange) -> None:
    try:
        await exchange.read_head()
        try:
            await handler(exchange)
        except HttpError as error:
            if exchange.answered:
                raise
            await exchange.answer_json(ErrorBody(error=error.code, detail=str(error)).model_dump(), error.status)
    except (Disconnected, HttpError, h11.ProtocolError, trio.BrokenResourceError, trio.TooSlowError) as error:
        logger.debug("%s %s: %s", exchange.method, exchange.path, str(error) or type(error).__name__)
    except Exception as error:
        report_failure(exchange.source, f"the call {exchange.method} {exchange.path}", error)


async def serve_plain(listeners: Sequence[trio.SocketListener], handler: Handler) -> None:
    """Serve without TLS until cancelled."""

    async def open_plain(connection: Connection) -> ByteStream:
        await trio.lowlevel.checkpoint()
        return connection.stream

    await serve(listeners, handler, open_plain)


async def serve_unix(listener: trio.SocketListener, handler: Handler) -> None:
    """Serve on a Unix socket until cancelled, then remove it."""
    path = listener.socket.getsockname()
    try:
        await serve_plain([listener], handler)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - as it was bound


async def serve_tls(
    listeners: Sequence[trio.SocketListener], identity: Callable[[], Identity], handler: Handler
) -> None:
    """Serve over TLS 1.3 until cancelled. Each connection uses the identity that `identity` then returns."""
    budget = CpuBudget(HANDSHAKE_CPU_SHARE, burst_s=0.05)

    async def open_tls(connection: Connection) -> ByteStream:
        with charged_to(budget):
            secured = ServerTlsStream(connection.stream, identity())
            await secured.handshake(budget.turn_of(connection.source))
            return secured

    await serve(listeners, handler, open_tls)


def listen_unix(path: Path) -> trio.SocketListener:
    """Listen on a Unix socket that only its owner may use. Replaces the socket of an earlier process.

    Raises:
        OSError: listening is impossible, or `path` is a file of another kind.
    """
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    inherited_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(inherited_mask)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))
