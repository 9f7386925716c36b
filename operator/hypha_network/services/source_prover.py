"""Proves sources of gossip by connecting to them, so that only holders of a certificate are heard.

The gateways know every peer that has connected to them with a certificate. A query to them costs one round trip, and
the answer names some such peers whatever key it asks about. So the node finds a new scheduler soon, even if a flood of
fresh keys surrounds its messages.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Final

import trio

from hypha_network.errors import NetworkError
from hypha_network.host import Host
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.recent_peers import RecentPeers
from hypha_network.services.gossip_sources import HeldMessages
from hypha_network.wire.addresses import Address

_unproved_log = RateLimitedLogger(logging.getLogger(__name__))

_MAX_NAMED_PROOFS: Final = 64
"""Proofs under way of sources that a gateway has named."""
_MAX_OTHER_PROOFS: Final = 8
_CONNECT_TIMEOUT_S: Final = 2.0
_PAUSES_S: Final = (0.0, 0.2, 0.6)
"""Pauses before the queries about a source. It may publish just before its gateway knows it."""
_DRAW_PAUSE_S: Final = 0.05
"""Pause of each of the other proofs before the next, which bounds the number of verified signatures."""
_NAMED_S: Final = 60.0
_FAILED_S: Final = 2.0
_UNREACHABLE_S: Final = 30.0
"""How long the node ignores a source that a gateway named and that did not answer."""
_MAX_CIRCUITS: Final = 16
_CIRCUITS_IN_S: Final = 3840.0
"""Half of what a gateway's relay grants one peer: 30 requests for a circuit, and one more every two minutes."""

Find = Callable[[str], Awaitable[Mapping[str, tuple[Address, ...]]]]
"""Asks the gateways about a peer; returns the peers that they name, with their addresses."""
Verify = Callable[[str, bytes], bool]
Release = Callable[[str, bytes], None]


class SourceProver:
    """Holds messages of unproved sources, and releases them once the node has connected to the source."""

    def __init__(self, host: Host, find: Find) -> None:
        self._host = host
        self._find = find
        self._held = HeldMessages()
        self._filled = trio.Event()
        self._named = RecentPeers(_NAMED_S)
        self._failed = RecentPeers(_FAILED_S)
        self._unreachable = RecentPeers(_UNREACHABLE_S)
        self._proving: set[str] = set()
        self._circuits: deque[float] = deque(maxlen=_MAX_CIRCUITS)
        """When the last proofs through relays began."""
        self._nursery: trio.Nursery | None = None
        self._release: Release | None = None

    def hold(self, forwarder: str, source: str, message: bytes) -> None:
        """Hold a message until its source is proved, unless a proof of the source has just failed."""
        if source in self._failed or source in self._unreachable:
            return
        self._held.add(forwarder, source, message)
        self._filled.set()
        self._prove_named([source])

    async def run(self, verify: Verify, release: Release) -> None:
        """Prove sources, without end.

        Args:
            verify: takes a forwarder and a message; returns whether that is well-formed and signed by its source.
            release: takes a forwarder and a message whose source is proved.
        """
        self._release = release
        async with trio.open_nursery() as self._nursery:
            for _ in range(_MAX_OTHER_PROOFS):
                self._nursery.start_soon(self._prove_drawn, verify)

    async def _prove_drawn(self, verify: Verify) -> None:
        while True:
            if not len(self._held):
                if self._filled.is_set():
                    self._filled = trio.Event()
                await self._filled.wait()
                continue
            forwarder, source, messages = self._held.draw()
            valid = [(forwarder, message) for message in messages if verify(forwarder, message)]
            if source in self._proving:
                for _, message in valid:
                    self._held.add(forwarder, source, message)
            elif valid:
                self._proving.add(source)
                await self._prove(source, valid)
            await trio.sleep(_DRAW_PAUSE_S)

    def _prove_named(self, sources: Iterable[str]) -> None:
        """Start to prove those of these sources that a gateway has named and that have messages here."""
        for source in sources:
            if (
                self._nursery is not None
                and len(self._proving) < _MAX_NAMED_PROOFS + _MAX_OTHER_PROOFS
                and source in self._named
                and source not in self._proving
                and source in self._held
            ):
                self._proving.add(source)
                self._nursery.start_soon(self._prove, source, [])

    async def _prove(self, source: str, drawn: list[tuple[str, bytes]]) -> None:
        """Try to prove a source. Release its messages, drawn and held ones, or drop them."""
        try:
            named = False
            for pause_s in _PAUSES_S:
                await trio.sleep(pause_s)
                if self._host.proved(source) or (named := await self._look_up_and_connect(source)):
                    break
            if not named and not self._host.proved(source) and not await self._connect_through_relay(source, None):
                self._failed.add(source)
        finally:
            self._proving.discard(source)
        messages = [*drawn, *self._held.take(source)]
        if not self._host.proved(source):
            _unproved_log.info(source, "dropped its gossip, because this node could not connect to it")
        elif self._release is not None:
            for forwarder, message in messages:
                self._release(forwarder, message)

    async def _look_up_and_connect(self, source: str) -> bool:
        """Connect to a source if a gateway names it. False if none does."""
        found = await self._find(source)
        for peer_id in found:
            self._named.add(peer_id)
        self._prove_named(peer_id for peer_id in found if peer_id != source)
        if source not in found or self._host.proved(source):
            return source in found
        direct = [address for address in found[source] if address.relay is None]
        relayed = [address for address in found[source] if address.relay is not None]
        if not (direct and await self._connect(source, direct)) and not await self._connect_through_relay(
            source, relayed or None
        ):
            self._unreachable.add(source)
        return True

    async def _connect_through_relay(self, source: str, addresses: list[Address] | None) -> bool:
        """Connect as `_connect` does, unless too many circuits were requested for unproved sources already."""
        now = trio.current_time()
        if len(self._circuits) == _MAX_CIRCUITS and now - self._circuits[0] < _CIRCUITS_IN_S:
            return False
        self._circuits.append(now)
        return await self._connect(source, addresses)

    async def _connect(self, source: str, addresses: list[Address] | None) -> bool:
        """Connect to a source at these addresses, or with None wherever a lookup finds it."""
        with trio.move_on_after(_CONNECT_TIMEOUT_S), suppress(NetworkError):
            await self._host.connect(source, addresses)
        return self._host.proved(source)
