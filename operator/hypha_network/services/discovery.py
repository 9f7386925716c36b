"""Find the peers that gateways know, where the gateways forward no gossip.

The reference's gateways subscribe to no topic, so a request reaches only the nodes that are connected to its scheduler.
A node that waits for requests therefore asks such gateways which peers they know, and connects to the new ones.

The table of such a gateway has room for few peers. So that schedulers find a place in it, a node that peers reach
through a relay stays out of it if half of the room is taken.
"""

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import lru_cache
from typing import Final

import trio

from hypha_messages.types import peer_id_to_bytes
from hypha_network.failures import report_failure
from hypha_network.host import Host
from hypha_network.services.kademlia_lookup import K, key_of, peer_key
from hypha_network.wire.addresses import Address

Peers = Mapping[str, tuple[Address, ...]]
"""The addresses of peers, by their id."""
Ask = Callable[[str, bytes], Awaitable[Peers]]
"""Asks a gateway for the peers that are closest to a key."""

EVERY_S: Final = 3.0
RETRY_S: Final = 60.0
"""How long a peer is left alone after an attempt, unless it has other addresses."""
MAX_DIALS: Final = 8
"""The number of peers that are dialled at a time."""
MAX_TRIED: Final = 256
"""The number of peers that may be dialled within RETRY_S."""
MAX_DEPTH: Final = 12
ROOM: Final = K // 2
"""So many peers of a bucket of a gateway's table may be nodes behind relays."""
_KEY_BITS: Final = 256


class Discovery:
    """Connects to the peers that gateways name.

    Args:
        host: the node's connections.
        ask: asks a gateway.
        gateways: the connected gateways from which this node gets no gossip.
        announce: sends this node's addresses to its peers.
    """

    def __init__(
        self, host: Host, ask: Ask, gateways: Callable[[], Iterable[str]], announce: Callable[[], Awaitable[None]]
    ) -> None:
        self._host = host
        self._ask = ask
        self._gateways = gateways
        self._announce = announce
        self._hiding: set[str] = set()
        """The gateways that this node has not told how it is reached through relays."""
        self._roomy: set[str] = set()
        self._tried: dict[str, tuple[float, frozenset[Address]]] = {}
        """By peer, when it may be tried again, and the addresses at which it was tried."""
        self._dials = trio.CapacityLimiter(MAX_DIALS)

    def hides(self, gateway: str) -> bool:
        """Return whether this node tells a peer no relayed addresses: a gateway in whose table it takes no place."""
        hides = gateway not in self._roomy and gateway in self._gateways()
        if hides:
            self._hiding.add(gateway)
        return hides

    async def run(self) -> None:
        """Ask the gateways at an interval, without end."""
        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(EVERY_S * random.uniform(0.8, 1.2)):  # noqa: S311 - it is no secret
                    await self._host.changes.until(lambda: not self._hiding.issubset(self._gateways()))
                for gateway in list(self._gateways()):
                    found = await listed(gateway, self._ask)
                    if self._has_room(gateway, found):
                        self._roomy.add(gateway)
                    for peer_id, addresses in self._new(found).items():
                        nursery.start_soon(self._connect, peer_id, addresses)
                await self._show()

    def _has_room(self, gateway: str, found: Peers) -> bool:
        own, others = bucket_of(self._host.peer_id, gateway), found.keys() - {self._host.peer_id}
        return sum(bucket_of(peer_id, gateway) == own for peer_id in others) < ROOM

    async def _show(self) -> None:
        """Announce this node to the gateways from which it need not hide any more."""
        self._roomy.intersection_update(self._host.connections)
        hiding = self._hiding.intersection(self._gateways()) - self._roomy
        shown, self._hiding = self._hiding - hiding, hiding
        if not shown.isdisjoint(self._host.connections):
            await self._announce()

    def _new(self, found: Peers) -> Peers:
        """Return the peers to dial, with their direct addresses."""
        now = trio.current_time()
        self._tried = {peer_id: tried for peer_id, tried in self._tried.items() if tried[0] > now}
        new: dict[str, tuple[Address, ...]] = {}
        for peer_id, addresses in found.items():
            direct = tuple(address for address in addresses if address.relay is None)
            _, before = self._tried.get(peer_id, (0.0, frozenset()))
            known = peer_id == self._host.peer_id or peer_id in self._host.connections
            if not known and not before.issuperset(direct) and len(self._tried) < MAX_TRIED:
                self._tried[peer_id] = (now + RETRY_S, before.union(direct))
                new[peer_id] = direct
        return new

    async def _connect(self, peer_id: str, addresses: tuple[Address, ...]) -> None:
        async with self._dials:
            try:
                await self._host.connect(peer_id, addresses)
            except Exception as error:
                report_failure(peer_id, "a connection to a peer that a gateway knows", error)


async def listed(gateway: str, ask: Ask) -> Peers:
    """Return all peers that a gateway of the reference knows.

    A gateway answers with the K closest peers to a key. The reference's table has a bucket of up to K peers for each
    number of bits that a peer's key has in common with the gateway's. The K peers closest to the gateway are those of
    the last buckets; each other bucket is the answer for a key that would be in it.
    """
    found = dict(await ask(gateway, peer_id_to_bytes(gateway)))
    if len(found) >= K:
        whole_from = min(bucket_of(peer_id, gateway) for peer_id in found) + 1
        for depth in range(min(whole_from, MAX_DEPTH)):
            found.update(await ask(gateway, key_in_bucket(gateway, depth)))
    return found


def bucket_of(peer_id: str, gateway: str) -> int:
    """Return the bucket of a gateway's table in which a peer has its place."""
    return common_bits(peer_key(peer_id), peer_key(gateway))


def common_bits(one: int, other: int) -> int:
    """Return with how many equal bits two places in the space of keys begin."""
    return _KEY_BITS - (one ^ other).bit_length()


@lru_cache(maxsize=256)
def key_in_bucket(peer_id: str, depth: int) -> bytes:
    """Return a key whose place has exactly the first `depth` bits in common with the peer's."""
    target = peer_key(peer_id)
    keys = (number.to_bytes(4, "big") for number in range(2**32))
    return next(key for key in keys if common_bits(key_of(key), target) == depth)
