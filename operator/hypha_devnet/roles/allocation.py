"""Finding workers: advertise, collect offers, take the best, and keep the leases alive."""

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import trio

from hypha_devnet.config import Price
from hypha_devnet.events import Events
from hypha_messages.advertisement import TOPIC, RequestWorker, WorkerSpec, encode
from hypha_messages.api import API, LeaseOutcome, RenewLease, WorkerOffer, WorkerOfferAccepted
from hypha_messages.types import SystemTime
from hypha_network.errors import NetworkError
from hypha_network.network import Network

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
"""How long an advertisement is good for."""
ADVERTISE_EVERY_S = 1.0
"""How long offers are waited for before the next advertisement, which reaches those who joined since."""
OFFER_WINDOW_S = 0.25
"""How long better offers are waited for once there are enough; a temporary lease lasts 500 ms."""
PUBLISH_RETRY_S = 0.25
RENEWAL_TIMEOUT_S = 3.0
RENEWAL_RETRY_S = 0.5
RENEW_AT = 1 / 3
"""After which part of a lease it is renewed; a worker that restarts has the rest to come back."""
MAX_OFFERS = 1024

_WEIGHTS = {"gpu": 25.0, "cpu": 1.0, "memory": 0.1, "storage": 0.01}


class AllocationError(Exception):
    """There are not enough workers."""


@dataclass(frozen=True)
class Offer:
    """A worker's offer."""

    peer_id: str
    message: WorkerOffer

    @property
    def unit_price(self) -> float:
        """Price per weighted unit of what is offered: the less, the better."""
        units = sum(weight * getattr(self.message.resources, name) for name, weight in _WEIGHTS.items())
        return self.message.price / units if units > 0 else math.inf


@dataclass(frozen=True)
class Wanted:
    """Which workers are wanted, for what, how many and for how much."""

    role: str
    spec: WorkerSpec
    price: Price
    count: int


@dataclass(eq=False)
class Lease:
    """A lease on a worker; `expires` is wall-clock seconds."""

    role: str
    offer: Offer
    expires: float
    lost: trio.Event = field(default_factory=trio.Event)

    @property
    def peer_id(self) -> str:
        """Whose lease it is."""
        return self.offer.peer_id


def choose(offers: Iterable[Offer], count: int, max_price: float, excluded: Iterable[str], now: float) -> list[Offer]:
    """Return the best offers, at most `count`, one of each peer; none too dear, expired or of excluded peers."""
    best: dict[str, Offer] = {}
    for offer in sorted(offers, key=lambda offer: offer.unit_price):
        if offer.message.price <= max_price and offer.message.timeout.timestamp > now and offer.peer_id not in excluded:
            best.setdefault(offer.peer_id, offer)
    return list(best.values())[:count]


class Allocator:
    """Takes offers and holds leases on behalf of one scheduler."""

    def __init__(self, network: Network, events: Events) -> None:
        self._network = network
        self._events = events
        self._requests: dict[uuid.UUID, list[Offer]] = {}
        self._arrived = trio.Event()

    def take_offer(self, peer_id: str, message: WorkerOffer) -> WorkerOfferAccepted:
        """Note an offer; whether it was taken shows by a renewal."""
        offers = self._requests.get(message.request_id)
        if offers is not None and len(offers) < MAX_OFFERS:
            offers.append(Offer(peer_id, message))
            self._events.emit(
                "offer", peer=peer_id, price=message.price, resources=message.resources.model_dump(mode="json")
            )
            self._arrived.set()
        return WorkerOfferAccepted()

    async def allocate(
        self,
        wanted: Wanted,
        leases: list[Lease],
        keep: Callable[[Lease], None],
        *,
        deadline_s: float,
        excluded: set[str],
    ) -> None:
        """Fill the list up with leases, each on another peer; AllocationError if there are not enough by the deadline.

        Leases lost meanwhile are dropped. The callback gets each new one at once, to start the method `keep`.
        """
        with trio.move_on_after(deadline_s):
            while True:
                leases[:] = [lease for lease in leases if not lease.lost.is_set()]
                if len(leases) >= wanted.count:
                    return
                taken = excluded | {lease.peer_id for lease in leases}
                for offer in await self._advertise(wanted, wanted.count - len(leases), taken):
                    lease = Lease(wanted.role, offer, offer.message.timeout.timestamp)
                    if await self.renew(lease):
                        leases.append(lease)
                        keep(lease)
        raise AllocationError(f"found {len(leases)} of {wanted.count} for {wanted.role} within {deadline_s:g} s")

    async def keep(self, lease: Lease) -> None:
        """Renew a lease again and again; sets its `lost` and returns once it is over."""
        renewed = True
        while (left_s := lease.expires - time.time()) > 0:
            # Where a renewal failed the worker may be restarting; it may be back before the lease is over.
            await trio.sleep(max(left_s * RENEW_AT, RENEWAL_RETRY_S) if renewed else RENEWAL_RETRY_S)
            renewed = await self.renew(lease)
        self._events.emit("lease_lost", peer=lease.peer_id, role=lease.role)
        lease.lost.set()

    async def renew(self, lease: Lease) -> bool:
        """Renew a lease once; False if that fails."""
        try:
            outcome = await self._network.request(
                lease.peer_id, API, RenewLease(id=lease.offer.message.id), timeout_s=RENEWAL_TIMEOUT_S
            )
        except NetworkError as error:
            logger.warning("cannot renew the lease of %s: %s", lease.peer_id, error)
            return False
        if not isinstance(outcome, LeaseOutcome) or outcome.failed or outcome.timeout is None:
            logger.warning("%s refuses to renew its lease", lease.peer_id)
            return False
        lease.expires = outcome.timeout.timestamp
        self._events.emit("lease", peer=lease.peer_id, role=lease.role, expires=round(lease.expires, 3))
        return True

    async def _advertise(self, wanted: Wanted, count: int, excluded: set[str]) -> list[Offer]:
        """Publish one request and return the best of what is offered, an empty list if that is nothing."""
        request_id = uuid.uuid4()
        offers = self._requests[request_id] = []
        timeout = SystemTime.from_timestamp(time.time() + REQUEST_TIMEOUT_S)
        request = RequestWorker(id=request_id, spec=wanted.spec, timeout=timeout, bid=wanted.price.bid)

        def best() -> list[Offer]:
            return choose(offers, count, wanted.price.max, excluded, time.time())

        try:
            await self._network.publish(TOPIC, encode(request))
            self._events.emit("request", role=wanted.role, request=str(request_id), wanted=count, bid=wanted.price.bid)
            with trio.move_on_after(ADVERTISE_EVERY_S):
                await self._wait_for(lambda: bool(best()))
                with trio.move_on_after(OFFER_WINDOW_S):
                    await self._wait_for(lambda: False)
            return best()
        except NetworkError as error:
            logger.info("cannot advertise yet: %s", error)
            await trio.sleep(PUBLISH_RETRY_S)
            return []
        finally:
            del self._requests[request_id]

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._arrived = trio.Event()
            await self._arrived.wait()
