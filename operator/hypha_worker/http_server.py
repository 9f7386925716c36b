"""A small HTTP/1.1 server on trio for a Unix socket: one request per connection, bodies streamed in large pieces.

h11 does the protocol. Bulk bodies of gigabytes pass through here, so nothing is done per byte and little per piece.
"""

import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

import h11
import trio

logger = logging.getLogger(__name__)

Buffer = bytes | bytearray | memoryview
Handler = Callable[["Exchange"], Awaitable[None]]

_READ_BYTES: Final = 512 * 1024
_MAX_CONNECTIONS: Final = 256
_HEAD_TIMEOUT_S: Final = 10.0
_STALL_TIMEOUT_S: Final = 900.0
"""How long the other side may neither read nor write: a bridge may wait for a disk, never for ever."""


class HttpError(Exception):
    """An answer that is a refusal: its status, a code for programs and a text for people."""

    def __init__(self, status: HTTPStatus, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class Disconnected(Exception):  # noqa: N818 - what the client did
    """The client has gone, or does not keep to the protocol."""


class Exchange:
    """One request and its answer."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER)
        self.method = ""
        self.path = ""
        self.query: dict[str, str] = {}
        self.headers: dict[str, str] = {}

    async def read_head(self) -> None:
        """Receive the request up to its body."""
        with trio.fail_after(_HEAD_TIMEOUT_S):
            request = await self._next_event()
        if not isinstance(request, h11.Request):
            raise Disconnected("no request")
        target = urlsplit(request.target.decode("ascii", errors="replace"))
        self.method = request.method.decode("ascii")
        self.path = target.path
        self.query = dict(parse_qsl(target.query))
        self.headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}

    async def pieces(self) -> AsyncIterator[Buffer]:
        """Receive the body piece by piece; Disconnected if it breaks off."""
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        while isinstance(event := await self._next_event(), h11.Data):
            yield event.data
        if not isinstance(event, h11.EndOfMessage):
            raise Disconnected("the body broke off")

    async def read_nothing(self) -> None:
        """Receive a body that must be empty; HttpError if it is not."""
        async for _ in self.pieces():
            raise HttpError(HTTPStatus.BAD_REQUEST, "invalid", f"{self.method} {self.path} takes no body")

    async def read_json(self, max_bytes: int = 1024 * 1024) -> Any:
        """Receive a body that is JSON; HttpError if it is not, or too long."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > max_bytes:
                raise HttpError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", f"the body is longer than {max_bytes} bytes"
                )
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, "invalid", f"the body is not JSON: {error}") from error

    async def answer_json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a JSON value."""
        body = json.dumps(value).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        await self._send(self._response(status, headers), h11.Data(data=body), h11.EndOfMessage())

    async def answer_empty(self) -> None:
        """Answer 204."""
        await self._send(self._response(HTTPStatus.NO_CONTENT, []), h11.EndOfMessage())

    async def start_stream(self, headers: dict[str, str]) -> None:
        """Begin a 200 answer whose body follows in pieces and ends with `end_stream`; cut short, the client knows."""
        kind = [("Content-Type", "application/octet-stream"), ("Transfer-Encoding", "chunked")]
        await self._send(self._response(HTTPStatus.OK, [*kind, *headers.items()]))

    async def send_piece(self, data: Buffer) -> None:
        """Send the next piece of the body, as fast as the client takes it."""
        await self._send(h11.Data(data=cast("bytes", data)))  # h11 passes it through untouched

    async def end_stream(self) -> None:
        """Say that the body is whole."""
        await self._send(h11.EndOfMessage())

    @property
    def answered(self) -> bool:
        """Whether the answer has begun."""
        return self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @asynccontextmanager
    async def until_disconnected(self) -> AsyncIterator[None]:
        """Cancel what runs inside when the client goes away: Disconnected. Only once the body has been read."""
        gone = False
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal gone
                await trio.lowlevel.wait_readable(self._stream.socket.fileno())
                gone = True  # a client that still says something now does not keep to one request per connection
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
        return h11.Response(status_code=status, headers=[*headers, ("Connection", "close")], reason=status.phrase)

    async def _next_event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            with _stall_timeout():
                self._http.receive_data(await self._stream.receive_some(_READ_BYTES))
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
        with trio.fail_after(_STALL_TIMEOUT_S):
            yield
    except trio.TooSlowError as error:
        raise Disconnected("the client neither reads nor writes") from error


async def _serve_one(handler: Handler, stream: trio.SocketStream) -> None:
    exchange = Exchange(stream)
    try:
        await exchange.read_head()
        try:
            await handler(exchange)
        except HttpError as error:
            if exchange.answered:
                raise
            await exchange.answer_json({"error": error.code, "detail": str(error)}, error.status)
    except (Disconnected, HttpError, h11.ProtocolError, trio.BrokenResourceError, trio.TooSlowError) as error:
        logger.debug("%s %s: %s", exchange.method, exchange.path, error or type(error).__name__)
    except Exception:
        logger.exception("%s %s failed", exchange.method, exchange.path)


async def serve(listener: trio.SocketListener, handler: Handler) -> None:
    """Answer every request with `await handler(exchange)`, until cancelled; then remove the socket."""
    limit = trio.CapacityLimiter(_MAX_CONNECTIONS)

    async def serve_limited(stream: trio.SocketStream) -> None:
        try:
            limit.acquire_nowait()
        except trio.WouldBlock:
            return  # which closes the connection: the client tries again
        try:
            await _serve_one(handler, stream)
        finally:
            limit.release()

    path = listener.socket.getsockname()
    try:
        await trio.serve_listeners(serve_limited, [listener])
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - as it was bound


def listen(path: Path) -> trio.SocketListener:
    """Listen on a Unix socket that only its owner may use; one left by another process is replaced. OSError."""
    path.unlink(missing_ok=True)
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
