"""Connects to the gateways at start, and again whenever a connection is lost."""

import logging
from collections.abc import Sequence
from functools import partial

import trio

from hypha_contracts.backoff import Backoff
from hypha_network.connection import Connection, best_of
from hypha_network.errors import DialError, NetworkError, StreamReset
from hypha_network.host import ConnectionTask, Host
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire.addresses import Address
from hypha_network.wire.dnsaddr import NamedGateway, look_up
from hypha_network.wire.race import AllFailedError, race

logger = logging.getLogger(__name__)
_connected_log = RateLimitedLogger(logger)
_lost_log = RateLimitedLogger(logger)

BACKOFF = Backoff(first_s=0.5, max_s=30.0, jitter=0.5)
STABLE_S = 60.0
"""A connection that lasted this long resets the count of failures."""


class Gateways:
    """The gateways of a node. The host runs `on_connected` on every new connection to one."""

    def __init__(self, host: Host, configured: Sequence[Address | NamedGateway], on_connected: ConnectionTask) -> None:
        self._host = host
        self._configured = configured
        self._on_connected = on_connected
        self._connected: dict[Address | NamedGateway, Connection] = {}
        """The connections, by configured address."""

    def peer_ids(self) -> tuple[str, ...]:
        """Return the peer ids of the connected gateways."""
        return tuple(dict.fromkeys(connection.peer_id for connection in self._connected.values()))

    def behind(self, peer_id: str) -> list[Address]:
        """Return the addresses at which a peer may be reached through the connected gateways."""
        others = [connection for connection in self._connected.values() if connection.peer_id != peer_id]
        return [connection.address.behind(connection.peer_id, peer_id) for connection in others]

    async def run(self) -> None:
        """Keep every gateway connected, without end."""
        async with trio.open_nursery() as nursery:
            for address in self._configured:
                nursery.start_soon(self._keep, address)

    async def _keep(self, address: Address | NamedGateway) -> None:
        failures, pauses = 0, BACKOFF.pauses()
        peer_id = address.peer_id  # None until the gateway's certificate names it
        while True:
            started = trio.current_time()
            try:
                connection = self._existing(peer_id) or await self._dial(address)
                if connection.closed.is_set():
                    raise StreamReset("the gateway closed the connection at once")
            except NetworkError as error:
                failures += 1
                log = logger.warning if failures in (1, 10) or failures % 100 == 0 else logger.info
                log("cannot connect to gateway %s, attempt %d: %s", address, failures, error)
            else:
                peer_id = connection.peer_id
                self._connected[address] = connection
                self._host.favour(peer_id)
                _connected_log.info(str(address), "connected to this gateway, whose peer id is %s", peer_id)
                self._host.changes.notify()
                connection.nursery.start_soon(self._host.run_task, self._on_connected, connection)
                try:
                    await connection.closed.wait()
                finally:
                    del self._connected[address]
                    self._host.changes.notify()
                    peer_id = address.peer_id  # another gateway may answer at this address
                _lost_log.warning(str(address), "lost the connection to this gateway")
                if trio.current_time() - started > STABLE_S:
                    failures, pauses = 0, BACKOFF.pauses()
                failures += 1
            await trio.sleep(next(pauses))

    async def _dial(self, address: Address | NamedGateway) -> Connection:
        """Connect to a gateway; NetworkError. One of the addresses that a name has is enough."""
        if isinstance(address, Address):
            return await self._host.dial(address)
        found = await look_up(address)
        attempts = [partial(self._host.dial, known, configured=True) for known in found]
        try:
            return await race(attempts, NetworkError, lambda _: None)
        except AllFailedError as error:
            raise DialError(f"{address}: {'; '.join(map(str, error.failures))}") from error

    def _existing(self, peer_id: str | None) -> Connection | None:
        """Return a direct connection that this node dialled. Only such an address is sure to work for other peers."""
        connections = self._host.connections.get(peer_id or "", [])
        return best_of(connection for connection in connections if not connection.inbound and not connection.relayed)
