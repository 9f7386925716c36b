"""A secured, muxed connection to a peer, and the choice among several."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from hypha_network.errors import StreamReset
from hypha_network.wire import multistream
from hypha_network.wire.addresses import Address
from hypha_network.wire.muxer import Muxed
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)

NEGOTIATION_TIMEOUT_S = 10.0
PROBE_TIMEOUT_S = 20.0
"""How long a connection may stay silent after the peer has made another one."""


@dataclass(eq=False)
class Connection:
    """A secured, muxed connection to a peer."""

    peer_id: str
    muxed: Muxed
    address: Address
    inbound: bool
    nursery: trio.Nursery
    """Runs the tasks of the connection and ends with it."""
    limited: bool = False
    """Whether a relay limits the bytes or the time of the connection."""
    local_port: int | None = None
    """The local port of a connection that this node dialled."""
    observed: Address | None = None
    """The address of this node that the peer observes, if the connection is direct."""
    closed: trio.Event = field(default_factory=trio.Event)
    streams: int = 0
    _counted: tuple[int, int] = (0, 0)
    _used_by: set[int] = field(default_factory=set)
    """The ids of streams that keep the connection in use."""
    _used_s: float = field(default_factory=trio.current_time)

    @property
    def relayed(self) -> bool:
        """Whether the connection goes through a relay."""
        return self.address.relay is not None

    @property
    def preference(self) -> tuple[bool, bool, float]:
        """Compares connections to one peer: direct ones are better, then unlimited ones, then those heard from last."""
        return not self.relayed, not self.limited, self.muxed.last_received_s

    async def open(self, protocols: list[str], timeout_s: float | None = None) -> Stream:
        """Open a stream for the first protocol that the peer speaks too; RemoteRefused if it speaks none of them."""
        timeout_s = timeout_s or NEGOTIATION_TIMEOUT_S
        with trio.move_on_after(timeout_s):
            stream = Stream(await self.muxed.open_stream(), self.peer_id)
            try:
                await multistream.select(stream, protocols)
            except BaseException:
                stream.reset()
                raise
            return stream
        raise StreamReset(f"{self.peer_id} did not open a stream within {timeout_s:g} s")

    def use(self, stream: Stream) -> None:
        """Let a stream keep a relayed connection in use until it ends."""
        if self.relayed:
            self._used_by.add(stream.id)
            self._used_s = trio.current_time()

    def idle_s(self) -> float:
        """Return for how many seconds no stream has kept a relayed connection in use, to the accuracy of the calls."""
        self._used_by &= self.muxed.open_streams
        if self._used_by:
            self._used_s = trio.current_time()
        return trio.current_time() - self._used_s

    def take_traffic(self) -> tuple[int, int]:
        """Return the bytes received and sent since the last call."""
        (received, sent), self._counted = self._counted, (self.muxed.received_bytes, self.muxed.sent_bytes)
        return self._counted[0] - received, self._counted[1] - sent

    async def close_if_silent(self) -> None:
        """Ping the peer, which may have lost this connection, and close the connection if nothing arrives."""
        pinged_at = trio.current_time()
        self.muxed.ping()
        await trio.sleep(PROBE_TIMEOUT_S)
        if self.muxed.last_received_s < pinged_at:
            logger.info("closing a connection with %s, which is silent since another one was made", self.peer_id)
            self.close()

    def close(self) -> None:
        """Close the connection and cancel its tasks."""
        self.nursery.cancel_scope.cancel()


def best_of(connections: Iterable[Connection]) -> Connection | None:
    """Return the connection to use: a direct one if there is any, then an unlimited one, the one heard from last."""
    return max(connections, key=lambda connection: connection.preference, default=None)


def silent_longest(connections: Iterable[Connection]) -> Connection:
    """Return the connection that was heard from longest ago."""
    return min(connections, key=lambda connection: connection.muxed.last_received_s)
