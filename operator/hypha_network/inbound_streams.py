"""Passes the inbound streams of connections to the handlers of their protocols."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import trio

from hypha_network.connection import NEGOTIATION_TIMEOUT_S, Connection
from hypha_network.errors import NetworkError
from hypha_network.failures import report_failure
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire import multistream
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)

MAX_INBOUND_STREAMS = 8192
"""Maximum number of streams served at once. Each peer may use an equal share; streams beyond it are reset."""
MAX_INBOUND_STREAMS_PER_PEER = 256
MIN_INBOUND_STREAMS_PER_PEER = 32
"""A peer's share of the streams is at least this, however many peers are connected."""

StreamHandler = Callable[[Connection, Stream], Awaitable[None]]


@dataclass(eq=False)
class InboundStreams:
    """Serves the streams that peers open.

    Attributes:
        connections: The connections by peer.
        handlers: The handlers by protocol.
        background: Protocols whose streams do not keep a connection in use.
    """

    connections: Mapping[str, Sequence[Connection]]
    handlers: Mapping[str, StreamHandler]
    background: AbstractSet[str]

    async def serve(self, connection: Connection) -> None:
        """Serve the streams of a connection until it ends."""
        while True:
            try:
                muxed = await connection.muxed.accept_stream()
            except NetworkError as error:
                logger.debug("connection with %s ended: %s", connection.peer_id, error)
                return
            stream = Stream(muxed, connection.peer_id)
            served = sum(other.streams for other in self.connections[connection.peer_id])
            if served >= (limit := self._limit()):
                _refusal_log.warning(connection.peer_id, "reset a stream, because the peer has %d open already", limit)
                stream.reset()
            else:
                connection.streams += 1
                connection.nursery.start_soon(self._serve_one, connection, stream)

    def _limit(self) -> int:
        """Return the number of streams of one peer that this node serves at once: an equal share of the maximum."""
        share = MAX_INBOUND_STREAMS // len(self.connections)
        return min(max(share, MIN_INBOUND_STREAMS_PER_PEER), MAX_INBOUND_STREAMS_PER_PEER)

    async def _serve_one(self, connection: Connection, stream: Stream) -> None:
        protocol, handlers = "a stream", dict(self.handlers)  # a protocol may come or go during the negotiation
        try:
            with trio.fail_after(NEGOTIATION_TIMEOUT_S):
                protocol = await multistream.accept(stream, handlers)
            if protocol not in self.background:
                connection.use(stream)
            await handlers[protocol](connection, stream)
            await stream.aclose()
        except Exception as error:
            report_failure(connection.peer_id, protocol, error)
            stream.reset()
        finally:  # Cancelled resets nothing: the connection is ending, and the peer could mistake a reset for an answer
            connection.streams -= 1
