"""Reaches a peer through a relay that carries bulk data, where no other connection does."""

from collections.abc import Iterable
from typing import Final
from weakref import WeakValueDictionary

import trio

from hypha_contracts.backoff import Backoff
from hypha_network.dialling import Found, dial_until
from hypha_network.host import Host
from hypha_network.pauses import Pauses
from hypha_network.services.relay import Relays
from hypha_network.wire.addresses import Address

TIMEOUT_S: Final = 10.0
"""How long a bulk stream waits for such a relay, of which some may not answer."""
PAUSES: Final = Backoff(first_s=10.0, max_s=300.0)
"""The pauses after attempts that found none, because each may cost circuits of relays that turn out to be limited."""


class BulkCircuits:
    """Connects to peers through relays that carry bulk data."""

    def __init__(self, host: Host, relays: Relays) -> None:
        self._host = host
        self._relays = relays
        self._failures = Pauses(PAUSES)
        self._attempts: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()
        """By peer, the attempt under way, for which other streams to that peer wait."""

    async def connect(self, peer_id: str) -> None:
        """Connect to a peer through such a relay, if any leads to it and no connection carries bulk data already."""
        async with self._attempts.setdefault(peer_id, trio.Lock()):
            if self._connected(peer_id) or self._failures.wait_s(peer_id) > 0:
                return

            async def find(found: Found) -> None:
                if self._host.find_addresses is not None:
                    await self._host.find_addresses(peer_id, lambda known: found(self._through_bulk(peer_id, known)))

            with trio.move_on_after(TIMEOUT_S):
                await dial_until(lambda: self._connected(peer_id), self._host.changes, find, self._dial)
            if self._connected(peer_id):
                self._failures.remove(peer_id)
            else:
                self._failures.add(peer_id)

    def _connected(self, peer_id: str) -> bool:
        best = self._host.connection(peer_id)
        return best is not None and not best.limited

    def _through_bulk(self, peer_id: str, known: Iterable[Address]) -> list[Address]:
        """Return the addresses through relays that carry bulk data, and then those that may."""
        carries = {address.of(peer_id): self._relays.carries_bulk(address.relay) for address in known if address.relay}
        return sorted((a for a, bulk in carries.items() if bulk is not False), key=lambda a: not carries[a])

    async def _dial(self, address: Address) -> None:
        await self._host.upgrade(await self._relays.dial(address, bulk=True), address.peer_id)
