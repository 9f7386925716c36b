"""Decides which messages of other peers a node verifies, accepts and holds, and refuses the peers that forge them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.types import peer_id_from_bytes
from hypha_network.fairness import FairRate
from hypha_network.host import Host
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.gossip_messages import Gossip, SeenCache, message_id, verify
from hypha_network.services.source_prover import SourceProver

_refusal_log = RateLimitedLogger(logging.getLogger(__name__))
_forger_log = RateLimitedLogger(logging.getLogger(__name__))

MAX_PROVED_PER_S: Final = 1000.0
"""Signatures verified per second for a topic of which only proved sources are heard. The sources share them."""
MAX_FORGERIES: Final = 64
"""A peer may forward this many messages of an invalid signature or form at once, and one a second. No honest peer
forwards any."""
_PEER_ID_CHARS: Final = 52
"""The length of the peer id of an Ed25519 key."""

Decode = Callable[[bytes], Any]
Hears = Callable[[str], bool]
"""Whether the node listens to a source at all."""
Accepted = Callable[[str, rpc_pb2.Message, bytes, Gossip[Any]], None]
"""Called with each accepted message: its forwarder, its envelope, its id, and what it says."""


def hears_all(_source: str) -> bool:
    """Listen to every source."""
    return True


@dataclass(frozen=True)
class _Topic:
    decode: Decode
    rate: FairRate | None
    """The rate of the signatures to verify if only proved sources are heard."""
    hears: Hears = hears_all


class Intake:
    """The messages that a node hears from other peers."""

    def __init__(self, host: Host, prover: SourceProver, on_accepted: Accepted) -> None:
        self._host = host
        self._prover = prover
        self._on_accepted = on_accepted
        self._topics: dict[str, _Topic] = {}
        self._forgeries = FairRate(1.0, MAX_FORGERIES)
        self.seen = SeenCache()

    def hear(self, topic: str, decode: Decode, proved_per_s: float | None, hears: Hears = hears_all) -> None:
        """Accept messages on a topic.

        With `proved_per_s`, accept only those of proved sources that it `hears`, and this many a second of each.
        """
        known = self._topics.get(topic)
        if known is not None and known.decode is not decode:
            raise ValueError(f"another subscriber of {topic} passed another decode function; pass the same one")
        rate = known.rate if known is not None else None
        if proved_per_s is not None:
            rate = FairRate(proved_per_s, proved_per_s, MAX_PROVED_PER_S)
        self._topics[topic] = _Topic(decode, rate, hears)

    def ignore(self, topic: str) -> None:
        """Accept no more messages on a topic."""
        del self._topics[topic]

    async def run(self) -> None:
        """Prove sources, and accept their messages, without end."""
        await self._prover.run(self._is_valid, self._release_held)

    def wants(self, topic: str, id_: bytes) -> bool:
        """Whether to ask for a message. If only proved sources are heard, its id must begin with one of them."""
        source = id_[:_PEER_ID_CHARS].decode(errors="replace")
        heard = self._topics[topic]
        return id_ not in self.seen and (heard.rate is None or (self._host.proved(source) and heard.hears(source)))

    def handle(self, peer_id: str, message: rpc_pb2.Message) -> None:
        """Accept, hold or drop a message that a peer forwards. The message has one topic."""
        topic = self._topics.get(message.topicIDs[0])
        if topic is None:  # no longer heard, since the caller waited
            return
        try:
            id_ = message_id(message)
        except ValueError as error:
            self._count_forgery(peer_id, error)
            return
        if id_ not in self.seen and self._admits(topic, peer_id, message):
            self._accept(topic, peer_id, message, id_)

    def _admits(self, topic: _Topic, peer_id: str, message: rpc_pb2.Message) -> bool:
        """Whether to verify a message now. Costs little, because anyone can claim any source."""
        if topic.rate is None:
            return True
        try:
            source = peer_id_from_bytes(message.from_id)
        except (ValueError, IndexError) as error:
            _refusal_log.warning(peer_id, "refused gossip: %s", error)
            return False
        if not topic.hears(source):
            return False
        if self._host.proved(source):
            return topic.rate.take((peer_id, source), time.monotonic())
        self._prover.hold(peer_id, source, message.SerializeToString())
        return False

    def _is_valid(self, peer_id: str, data: bytes) -> bool:
        """Whether a held message decodes, and its source has signed it."""
        message = rpc_pb2.Message.FromString(data)
        if (topic := self._topics.get(message.topicIDs[0])) is None:  # no longer heard
            return False
        try:
            topic.decode(message.data)
        except ValueError as error:  # an honest peer forwards what another one signed, whatever it says
            _refusal_log.warning(peer_id, "refused gossip: %s", error)
            return False
        return self._source_of(peer_id, message) is not None

    def _release_held(self, peer_id: str, data: bytes) -> None:
        message = rpc_pb2.Message.FromString(data)
        topic, id_ = self._topics.get(message.topicIDs[0]), message_id(message)
        if topic is not None and id_ not in self.seen:
            self._accept(topic, peer_id, message, id_)

    def _accept(self, topic: _Topic, peer_id: str, message: rpc_pb2.Message, id_: bytes) -> None:
        """Verify a message, and hand it on."""
        if (source := self._source_of(peer_id, message)) is None:
            return
        self.seen.add(id_, time.monotonic())
        if source == self._host.peer_id:
            return
        try:
            decoded = topic.decode(message.data)
        except ValueError as error:
            _refusal_log.warning(peer_id, "refused gossip signed by %s: %s", source, error)
            return
        self._on_accepted(peer_id, message, id_, Gossip(source, decoded))

    def _source_of(self, peer_id: str, message: rpc_pb2.Message) -> str | None:
        """Return the peer that signed a message, or None if it is forged."""
        try:
            return verify(message)
        except ValueError as error:
            self._count_forgery(peer_id, error)
            return None

    def _count_forgery(self, peer_id: str, error: ValueError) -> None:
        _refusal_log.warning(peer_id, "refused gossip: %s", error)
        if not self._forgeries.take(peer_id, time.monotonic()):
            _forger_log.warning(peer_id, "closing its connections, because it sent many forged messages")
            self._host.refuse(peer_id)
