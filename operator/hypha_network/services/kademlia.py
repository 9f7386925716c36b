"""Kademlia, `/ipfs/kad/1.0.0`: find the addresses of peers, and store and find records.

Hypha networks are permissioned and small, so the routing table is flat. It holds every peer that identified itself, up
to a bound.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from heapq import nsmallest

import trio

from hypha_messages.types import peer_id_to_bytes
from hypha_network.connection import Connection
from hypha_network.dialling import Found
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.failures import report_failure
from hypha_network.host import Host
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.kademlia_lookup import K, Lookup, key_of, peer_key
from hypha_network.services.kademlia_messages import (
    MAX_MESSAGE_BYTES,
    Kind,
    Message,
    Record,
    StoredRecord,
    decode,
    encode,
)
from hypha_network.wire.addresses import Address
from hypha_network.wire.multistream import prefixed, read_prefixed
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)
_publish_log = RateLimitedLogger(logger)

PROTOCOL = "/ipfs/kad/1.0.0"
ALPHA = 5
"""The number of peers that a lookup asks at a time."""
QUERY_TIMEOUT_S = 5.0
LOOKUP_TIMEOUT_S = 20.0
REFRESH_S = 60.0
RETRY_S = 2.0
REPUBLISH_S = 3600.0
RECORD_LIFETIME_S = 48 * 3600
FAILED_S = 60.0
"""How long lookups leave out a peer that did not answer, unless they find other addresses of it."""
MAX_KNOWN_PEERS = 1024
"""At this limit, a new peer replaces one that is not connected."""
MAX_RECORDS = 1024
MAX_RECORDS_PER_PEER = 32
"""At this limit, and at the one above, new records are refused, because each stored one may be in use."""
MAX_RECORD_BYTES = 8 * 1024
_SERVE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class _Known:
    addresses: tuple[Address, ...]
    serves: bool


@dataclass(frozen=True)
class _Failure:
    until: float
    """The monotonic time in seconds after which lookups ask the peer again."""
    tried: frozenset[Address]


class Kademlia:
    """The routing table and the records of this node, and the lookups that extend them."""

    def __init__(
        self,
        host: Host,
        usable: Callable[[Address], bool],
        gateways: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Make the table of a node.

        Args:
            host: the node's connections.
            usable: whether this node may dial an address that a peer announces.
            gateways: the connected gateways, with which every lookup begins.
        """
        self._host = host
        self._usable = usable
        self._gateways = gateways
        self._table: OrderedDict[str, _Known] = OrderedDict()
        self._failed: dict[str, _Failure] = {}
        self._own: dict[bytes, bytes] = {}
        self._records: dict[bytes, tuple[Record, float]] = {}
        """By key, the record of another peer, and the monotonic time in seconds when it expires."""
        self._learned = trio.Event()
        self.bootstrapped = trio.Event()
        """Set once a peer has answered a lookup of this node's own id."""

    def serve(self, serves: bool) -> bool:
        """Answer queries and store records of others, or no more. Return whether that is a change."""
        if serves == (PROTOCOL in self._host.protocols):
            return False
        if serves:
            self._host.register({PROTOCOL: self._serve})
        else:
            self._host.unregister([PROTOCOL])
        return True

    def learn(self, peer_id: str, known: Iterable[Address], protocols: frozenset[str]) -> None:
        """Record the addresses and protocols that a peer announced."""
        before = self._table.get(peer_id)
        self._table[peer_id] = _Known(tuple(filter(self._usable, known)), PROTOCOL in protocols)
        self._table.move_to_end(peer_id)
        self._failed.pop(peer_id, None)
        self._bound_table()
        if before is None or not self.bootstrapped.is_set():
            self._learned.set()
        if before != self._table.get(peer_id):
            self._host.changes.notify()

    def _bound_table(self) -> None:
        """Remove the peers that identified themselves longest ago, but none that is connected, as gateways are."""
        while len(self._table) > MAX_KNOWN_PEERS:
            oldest = next((peer_id for peer_id in self._table if peer_id not in self._host.connections), None)
            if oldest is None:
                return
            del self._table[oldest]

    def addresses_of(self, peer_id: str) -> tuple[Address, ...]:
        """Return the addresses that a peer announced for itself."""
        known = self._table.get(peer_id)
        return known.addresses if known else ()

    async def run(self) -> None:
        """Look this node's own id up at an interval and for each new peer, and republish its records, without end."""
        published = trio.current_time()
        while True:
            with trio.move_on_after(REFRESH_S if self.bootstrapped.is_set() else RETRY_S):
                await self._learned.wait()
            self._learned = trio.Event()
            await trio.sleep(0.02)  # one lookup serves peers that connect at the same moment
            if await self._lookup(peer_id_to_bytes(self._host.peer_id)):
                self.bootstrapped.set()
                self._host.changes.notify()
            if self._own and trio.current_time() - published > REPUBLISH_S:
                published = trio.current_time()
                await self.republish()

    async def republish(self) -> None:
        """Publish this node's records again, for example when a gateway has connected."""
        for key in list(self._own):
            try:
                await self.put(key, self._own[key])
            except NetworkError as error:
                _publish_log.warning(f"record {key!r}", "cannot publish it: %s", error)

    async def put(self, key: bytes, value: bytes) -> None:
        """Publish a record. NetworkError if no peer stored it; this node then publishes it again later."""
        if (size_bytes := len(key) + len(value)) > MAX_RECORD_BYTES:
            raise NetworkError(f"a record of {size_bytes} bytes is too large; the limit is {MAX_RECORD_BYTES}")
        self._own[key] = value
        record = StoredRecord(key, Record(value, self._host.peer_id), RECORD_LIFETIME_S)
        stored_by: list[str] = []

        async def store_on(peer_id: str) -> None:
            try:
                await self._ask(peer_id, (), Message(Kind.PUT_VALUE, key, record))
            except NetworkError as error:
                logger.debug("record %r was not stored by %s: %s", key, peer_id, error)
            else:
                stored_by.append(peer_id)

        closest, gateways = await self._lookup(key), self._gateways()
        also = [peer_id for peer_id in closest[K:] if peer_id in gateways]  # which every lookup asks
        async with trio.open_nursery() as nursery:
            for peer_id in closest[:K] + also:
                nursery.start_soon(store_on, peer_id)
        if not stored_by:
            raise NetworkError(f"no peer stored the record {key!r}")

    async def get(self, key: bytes) -> Record | None:
        """Look a record up; None if no peer has it."""
        if stored := self._stored(key):
            return stored.record
        found: list[Record] = []

        def done(message: Message) -> bool:
            if message.record is not None and message.record.key == key:
                found.append(message.record.record)
            return bool(found)

        await self._lookup(key, Kind.GET_VALUE, done)
        return found[0] if found else None

    async def find_peer(self, peer_id: str, found: Found) -> None:
        """Look a peer's addresses up. Pass those in every answer on, because the first ones may be false."""

        def pass_on(message: Message) -> bool:
            for closer, known in message.closer:
                if closer == peer_id:
                    found(filter(self._usable, known))
            return False

        await self._lookup(peer_id_to_bytes(peer_id), Kind.FIND_NODE, pass_on, leave_out=peer_id)

    async def ask(self, peer_ids: Iterable[str], key: bytes, timeout_s: float) -> dict[str, tuple[Address, ...]]:
        """Ask connected peers once about a key; return the peers that they name, the closest ones they know."""
        found: dict[str, tuple[Address, ...]] = {}

        async def ask_one(peer_id: str) -> None:
            with suppress(NetworkError):
                answer = await self._ask(peer_id, (), Message(Kind.FIND_NODE, key))
                for closer, known in answer.closer:
                    merged = dict.fromkeys((*found.get(closer, ()), *filter(self._usable, known)))
                    found[closer] = tuple(merged)

        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for peer_id in peer_ids:
                    nursery.start_soon(ask_one, peer_id)
        return found

    async def _lookup(
        self,
        key: bytes,
        kind: Kind = Kind.FIND_NODE,
        done: Callable[[Message], bool] = lambda _: False,
        leave_out: str = "",
    ) -> list[str]:
        """Ask ever closer peers about a key, until `done` returns True or no peer is left to ask.

        Returns the peers that answered, the closest first.
        """
        lookup = self._begin_lookup(key, leave_out)
        request, progress = Message(kind, key), trio.Condition()
        with trio.move_on_after(LOOKUP_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                for _ in range(ALPHA):
                    nursery.start_soon(self._search, lookup, progress, request, done, nursery.cancel_scope)
        return lookup.answered

    def _begin_lookup(self, key: bytes, leave_out: str) -> Lookup:
        now, connected = time.monotonic(), self._host.connections.keys()
        self._failed = {peer_id: failure for peer_id, failure in self._failed.items() if failure.until > now}
        lookup = Lookup(
            key_of(key),
            {self._host.peer_id, leave_out}.union(
                peer_id for peer_id, known in self._table.items() if not known.serves and peer_id in connected
            ),
            {peer_id: failure.tried for peer_id, failure in self._failed.items() if peer_id not in connected},
            self._gateways(),
        )
        for peer_id, known in self._table.items():
            if known.serves:
                self._add(lookup, peer_id, known.addresses)
        return lookup

    def _add(self, lookup: Lookup, peer_id: str, known: Iterable[Address]) -> None:
        """Let a lookup ask a peer, unless only a relay leads to it, because relays grant few circuits."""
        direct = _direct(known)
        if direct or peer_id in self._host.connections:
            lookup.add(peer_id, direct)

    async def _search(
        self,
        lookup: Lookup,
        progress: trio.Condition,
        request: Message,
        done: Callable[[Message], bool],
        scope: trio.CancelScope,
    ) -> None:
        while True:
            async with progress:
                while (peer_id := lookup.next()) is None:
                    if not lookup.running:
                        progress.notify_all()
                        return
                    await progress.wait()
            hints = lookup.addresses.get(peer_id, ())
            try:
                answer = await self._ask(peer_id, hints, request)
            except Exception as error:
                report_failure(peer_id, "a lookup", error)
                refused = isinstance(error, RemoteRefused)
                lookup.on_failure(peer_id, None if refused else hints)
                if not refused:
                    self._failed[peer_id] = _Failure(time.monotonic() + FAILED_S, frozenset(hints))
            else:
                lookup.on_answer(peer_id)
                for closer, known in answer.closer:
                    self._add(lookup, closer, filter(self._usable, known))
                if done(answer):
                    scope.cancel()
            async with progress:
                progress.notify_all()

    async def _ask(self, peer_id: str, hints: Iterable[Address], request: Message) -> Message:
        with trio.move_on_after(QUERY_TIMEOUT_S):
            direct = _direct((*self.addresses_of(peer_id), *hints))
            stream = await self._host.open_stream(peer_id, [PROTOCOL], direct)
            try:
                await stream.send_all(prefixed(encode(request)))
                answer = decode(await read_prefixed(stream, MAX_MESSAGE_BYTES))
                await stream.send_eof()
            finally:
                stream.reset()
            return answer
        raise NetworkError(f"{peer_id} did not answer within {QUERY_TIMEOUT_S:g} s")

    async def _serve(self, connection: Connection, stream: Stream) -> None:
        with trio.move_on_after(_SERVE_TIMEOUT_S):
            while first := await stream.receive_some():
                stream.push_back(first)
                request = decode(await read_prefixed(stream, MAX_MESSAGE_BYTES))
                answer = self._answer(connection.peer_id, request)
                if answer is None:
                    raise RemoteRefused(f"{request.kind.name} refused")
                await stream.send_all(prefixed(encode(answer)))

    def _answer(self, peer_id: str, request: Message) -> Message | None:
        if request.kind is Kind.PUT_VALUE:
            return request if request.record is not None and self._store(peer_id, request.record) else None
        if request.kind in (Kind.PING, Kind.ADD_PROVIDER):
            return Message(request.kind)
        record = self._stored(request.key) if request.kind is Kind.GET_VALUE else None
        return Message(request.kind, request.key, record, self._closest(request.key, peer_id))

    def _closest(self, key: bytes, asker: str) -> tuple[tuple[str, tuple[Address, ...]], ...]:
        target = key_of(key)
        known = [(peer_key(id_) ^ target, id_) for id_, peer in self._table.items() if peer.addresses and id_ != asker]
        return tuple((id_, self._table[id_].addresses) for _, id_ in nsmallest(K, known))

    def _store(self, peer_id: str, stored: StoredRecord) -> bool:
        """Store a record for the peer that publishes it. False if it is refused, for a reason that the log names."""
        if reason := self._objection(peer_id, stored):
            _refusal_log.warning(peer_id, "refused to store the record %r: %s", stored.key[:64], reason)
            return False
        lifetime_s = min(stored.lifetime_s or RECORD_LIFETIME_S, RECORD_LIFETIME_S)
        self._records[stored.key] = Record(stored.record.value, peer_id), time.monotonic() + lifetime_s
        return True

    def _objection(self, peer_id: str, stored: StoredRecord) -> str | None:
        """Return why this node does not store a record for a peer, or None."""
        if stored.record.publisher not in (None, peer_id):
            return "it names another publisher"
        if len(stored.key) + len(stored.record.value) > MAX_RECORD_BYTES:
            return "it is too large"
        if existing := self._stored(stored.key):
            return None if existing.record.publisher == peer_id else "another peer published it"
        now = time.monotonic()
        self._records = {key: entry for key, entry in self._records.items() if entry[1] > now}
        if sum(record.publisher == peer_id for record, _ in self._records.values()) >= MAX_RECORDS_PER_PEER:
            return f"the peer has {MAX_RECORDS_PER_PEER} records here already"
        if len(self._records) >= MAX_RECORDS:
            return f"this node holds {MAX_RECORDS} records already"
        return None

    def _stored(self, key: bytes) -> StoredRecord | None:
        if key in self._own:
            return StoredRecord(key, Record(self._own[key], self._host.peer_id), RECORD_LIFETIME_S)
        record, until = self._records.get(key, (None, 0.0))
        lifetime_s = int(until - time.monotonic())
        return StoredRecord(key, record, lifetime_s) if record is not None and lifetime_s > 0 else None


def _direct(known: Iterable[Address]) -> list[Address]:
    return [address for address in known if address.relay is None]
