"""Requests and responses in CBOR. Each exchange has its own stream, and each side closes its direction at the end."""

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable

import trio

from hypha_messages.protocol import Protocol, Request, Response
from hypha_network.connection import Connection
from hypha_network.errors import RemoteRefused, RequestTimeout, StreamReset
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)

MAX_REQUEST_BYTES = 1024 * 1024
MAX_RESPONSE_BYTES = 10 * 1024 * 1024
REQUEST_TIMEOUT_S = 10.0
MAX_CONCURRENT_PER_PEER = 16

Handler = Callable[[str, Request], Awaitable[Response | None]]


class Requests:
    """Sends requests to peers, and answers theirs."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits: defaultdict[str, trio.CapacityLimiter] = defaultdict(
            lambda: trio.CapacityLimiter(MAX_CONCURRENT_PER_PEER)
        )

    def stream_handler(
        self, protocol: Protocol[Request, Response], handler: Handler[Request, Response]
    ) -> StreamHandler:
        """Return a stream handler that answers with the result of `handler`, or refuses the request if that is None."""

        async def serve(connection: Connection, stream: Stream) -> None:
            with trio.move_on_after(REQUEST_TIMEOUT_S) as scope:
                limit = self._limits[connection.peer_id]
                try:
                    async with limit:
                        await self._answer(protocol, handler, stream)
                finally:
                    statistics = limit.statistics()
                    if not statistics.borrowed_tokens and not statistics.tasks_waiting:
                        self._limits.pop(connection.peer_id, None)
            if scope.cancelled_caught:
                message = "reset a request of %s that was not sent and answered within %g s"
                _refusal_log.warning(connection.peer_id, message, protocol.id, REQUEST_TIMEOUT_S)
                stream.reset()

        return serve

    async def _answer(
        self, protocol: Protocol[Request, Response], handler: Handler[Request, Response], stream: Stream
    ) -> None:
        try:
            request = protocol.request.decode(await stream.read_to_end(MAX_REQUEST_BYTES))
        except ValueError as error:
            _refusal_log.warning(stream.peer_id, "sent a malformed %s request: %s", protocol.id, error)
            stream.reset()
            return
        response = await handler(stream.peer_id, request)
        if response is None:
            stream.reset()
            return
        await stream.send_all(protocol.response.encode(response))

    async def request(
        self, peer_id: str, protocol: Protocol[Request, Response], message: Request, timeout_s: float
    ) -> Response:
        """Send a request to a peer and return its response; see `Network.request` for the errors."""
        with trio.move_on_after(timeout_s):
            stream = await self._host.open_stream(peer_id, [protocol.id])
            return await self._exchange(stream, protocol, protocol.request.encode(message))
        raise RequestTimeout(f"{peer_id} did not answer {protocol.id} within {timeout_s:g} s")

    async def _exchange(self, stream: Stream, protocol: Protocol[Request, Response], body: bytes) -> Response:
        try:
            await stream.send_all(body)
            await stream.send_eof()
            answer = await stream.read_to_end(MAX_RESPONSE_BYTES)
            response = protocol.response.decode(answer) if answer else None
        except BaseException as error:
            stream.reset()
            if isinstance(error, ValueError):
                raise RemoteRefused(f"{stream.peer_id} sent a malformed {protocol.id} response: {error}") from error
            if isinstance(error, StreamReset):
                raise StreamReset(f"{stream.peer_id} reset the stream of {protocol.id}: {error}") from error
            raise
        if response is None:
            stream.reset()
            raise RemoteRefused(f"{stream.peer_id} closed the stream of {protocol.id} without a response")
        await stream.aclose()
        return response
