"""What a node keeps about the sources of gossip before it verifies a signature. Pure.

A key costs nothing, so the claimed source of a message proves nothing. Messages of sources that no certificate has
proved wait here in shares, one for each peer that forwards them.
"""

import random
from typing import Final

MAX_HELD_BYTES: Final = 4 * 1024 * 1024
MAX_HELD_MESSAGE_BYTES: Final = 8 * 1024
MAX_HELD_PER_SOURCE: Final = 4
_OVERHEAD_BYTES: Final = 512
"""Counted for each message in addition to its size, for the objects that hold it."""


class HeldMessages:
    """Messages of unproved sources, bounded in bytes.

    At the limit, the forwarder with the largest share loses a random source's messages. No forwarder can displace the
    messages that another one has forwarded, and a flood cannot decide which of its own are lost.
    """

    def __init__(self, max_bytes: int = MAX_HELD_BYTES) -> None:
        self._max_bytes = max_bytes
        self._shares: dict[str, _Share] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return sum(len(share.messages) for share in self._shares.values())

    def __contains__(self, source: str) -> bool:
        return any(source in share.messages for share in self._shares.values())

    def add(self, forwarder: str, source: str, message: bytes) -> None:
        """Hold a message, unless it is too large or its source has too many in the share of this forwarder."""
        share = self._shares.get(forwarder)
        held = share.messages.get(source, ()) if share else ()
        if len(message) > MAX_HELD_MESSAGE_BYTES or len(held) >= MAX_HELD_PER_SOURCE or message in held:
            return
        if share is None:
            share = self._shares[forwarder] = _Share()
        self.size_bytes += share.add(source, message)
        while self.size_bytes > self._max_bytes:
            largest = max(self._shares, key=lambda peer_id: self._shares[peer_id].size_bytes)
            self._take(largest, self._shares[largest].random_source())

    def draw(self) -> tuple[str, str, list[bytes]]:
        """Remove and return a random forwarder, a random source of its share, and that source's messages."""
        forwarder = random.choice(list(self._shares))  # noqa: S311
        source = self._shares[forwarder].random_source()
        return forwarder, source, self._take(forwarder, source)

    def take(self, source: str) -> list[tuple[str, bytes]]:
        """Remove and return all messages of a source, each with its forwarder."""
        forwarders = [peer_id for peer_id, share in self._shares.items() if source in share.messages]
        return [(peer_id, message) for peer_id in forwarders for message in self._take(peer_id, source)]

    def _take(self, forwarder: str, source: str) -> list[bytes]:
        share = self._shares[forwarder]
        before = share.size_bytes
        messages = share.take(source)
        self.size_bytes -= before - share.size_bytes
        if not share.messages:
            del self._shares[forwarder]
        return messages


class _Share:
    """The messages from one forwarder, by source."""

    def __init__(self) -> None:
        self.messages: dict[str, list[bytes]] = {}
        self.size_bytes = 0
        self._sources: list[str] = []
        """The keys of `messages`, in an order in which a random one is found at once."""
        self._positions: dict[str, int] = {}

    def add(self, source: str, message: bytes) -> int:
        if source not in self.messages:
            self._positions[source] = len(self._sources)
            self._sources.append(source)
        self.messages.setdefault(source, []).append(message)
        size = len(message) + _OVERHEAD_BYTES
        self.size_bytes += size
        return size

    def take(self, source: str) -> list[bytes]:
        position, last = self._positions.pop(source), self._sources.pop()
        if last != source:
            self._sources[position] = last
            self._positions[last] = position
        messages = self.messages.pop(source)
        self.size_bytes -= sum(len(message) + _OVERHEAD_BYTES for message in messages)
        return messages

    def random_source(self) -> str:
        return random.choice(self._sources)  # noqa: S311
