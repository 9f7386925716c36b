"""Receives the requests of schedulers and answers with offers.

Requests that fit into the free capacity get an offer at once. While an offer is outstanding, competing requests are
collected until the window is over or capacity is freed. Then the best ones get offers. A request that does not fit
waits for free capacity as long as its scheduler waits.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from hypha_messages.advertisement import TOPIC, RequestWorker, decode
from hypha_messages.api import API, WorkerOffer
from hypha_messages.types import SystemTime
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.gossip_messages import Gossip
from hypha_worker.market.evaluator import Policy
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.market.waiting import Waiting, WaitingRequests
from hypha_worker.telemetry import Telemetry

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)
_failure_log = RateLimitedLogger(logger)
_offer_log = RateLimitedLogger(logger)

_BACKLOG: Final = 4096
_MAX_SENDING: Final = 32
"""Offers under way to one scheduler, so that a slow scheduler blocks only a part of the worker."""


class Arbiter:
    """Decides which requests get offers, and sends the offers."""

    def __init__(
        self,
        network: Network,
        ledger: Ledger,
        policy: Policy,
        telemetry: Telemetry,
        *,
        waiting: WaitingRequests,
        requests_per_s: float,
        wall_clock: Callable[[], float],
        offer_timeout_s: float = 0.5,
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._policy = policy
        self._waiting = waiting
        self._requests_per_s = requests_per_s
        self._telemetry = telemetry
        self._wall_clock = wall_clock
        self._offer_timeout_s = offer_timeout_s
        self._sending: Counter[str] = Counter()
        self._wake = trio.Event()
        self._capacity_freed = False
        self._offering = True
        self.requests = RequestTally()

    async def run(self) -> None:
        """Answer requests until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                with trio.move_on_after(self._waiting.due_in(trio.current_time())):
                    await self._wake.wait()
                self._wake = trio.Event()
                for lease, waiting, price in self._choose():
                    nursery.start_soon(self._send_offer, lease, waiting, price)

    def stop_offering(self) -> None:
        """Answer no more requests."""
        self._offering = False

    def on_capacity_freed(self) -> None:
        """Consider waiting requests again, because leases have ended."""
        self._capacity_freed = True
        self._wake.set()

    def on_offer_lapsed(self, scheduler: str) -> None:
        """Record that a scheduler let an offer lapse."""
        self._waiting.record_lapsed(scheduler, trio.current_time())

    async def _listen(self) -> None:
        with self._network.subscribe(TOPIC, decode, _BACKLOG, self._requests_per_s) as channel:
            async for gossip in channel:
                self._take(gossip)
                with suppress(trio.WouldBlock):
                    for _ in range(_BACKLOG):  # requests that arrived together compete
                        self._take(channel.receive_nowait())
                self._wake.set()

    def _take(self, gossip: Gossip[RequestWorker]) -> None:
        """Refuse one request or let it wait for an offer."""
        now = trio.current_time()
        if not self._offering:
            self._telemetry.requests.add(1, {"decision": "ignored"})
            return
        request = gossip.message
        refusal = self._policy.refusal(request, self._wall_clock())
        if refusal is not None:
            self.requests.record(refusal)
            _refusal_log.info(gossip.source, "request %s gets no offer: %s", request.id, refusal.message)
            self._telemetry.requests.add(1, {"decision": "refused"})
        elif not self._ledger.answered(gossip.source, request.id):
            added = self._waiting.add(Waiting(gossip.source, request, now))
            if added:
                self.requests.record(None)
            self._telemetry.requests.add(1, {"decision": "considered" if added else "ignored"})

    def _choose(self) -> list[tuple[Lease, Waiting, float]]:
        """Reserve capacity for the best candidates."""
        now = trio.current_time()
        self._waiting.drop_expired(now, self._wall_clock())
        candidates = self._candidates(now) if self._offering else ()
        if not candidates:
            return []
        if not self._ledger.fits([self._policy.least]):  # rating many requests in vain takes long
            self._waiting.pass_over()
            return []
        with self._telemetry.tracer.start_as_current_span(
            "evaluate requests", attributes={"requests": len(candidates)}
        ):
            free = self._ledger.free()
            ranked = sorted(
                candidates,
                key=lambda w: (
                    not self._waiting.stands_back(w.scheduler, now),
                    self._policy.score(w.scheduler, w.request, free),
                ),
                reverse=True,
            )
        chosen = []
        for waiting in ranked:
            if self._sending[waiting.scheduler] >= _MAX_SENDING:
                continue
            resources, price = self._policy.terms(waiting.request)
            lease = self._ledger.offer(waiting.scheduler, waiting.request.id, waiting.request.spec.executor, resources)
            if lease is not None:
                self._waiting.remove(waiting)
                self._sending[waiting.scheduler] += 1
                chosen.append((lease, waiting, price))
        self._waiting.pass_over()
        return chosen

    def _candidates(self, now: float) -> tuple[Waiting, ...]:
        """Return the requests to consider now.

        These are all requests if capacity was freed. Otherwise they are the new ones, unless more may still arrive.
        """
        if self._capacity_freed:
            self._capacity_freed = False
            return self._waiting.all
        fresh = self._waiting.fresh
        outstanding = any(lease.state == "offered" for lease in self._ledger.leases)
        if not outstanding or self._waiting.due_in(now) <= 0:
            return fresh
        return fresh if self._ledger.fits(self._policy.terms(w.request)[0] for w in fresh) else ()

    async def _send_offer(self, lease: Lease, waiting: Waiting, price: float) -> None:
        offer = WorkerOffer(
            id=lease.id,
            request_id=lease.request_id,
            price=price,
            resources=lease.resources,
            timeout=SystemTime.from_timestamp(lease.deadline),
        )
        try:
            with self._telemetry.tracer.start_as_current_span("offer", attributes={"request": str(lease.request_id)}):
                await self._network.request(lease.scheduler, API, offer, timeout_s=self._offer_timeout_s)
        except NetworkError as error:
            self._telemetry.offers.add(1, {"outcome": "failed"})
            if self._ledger.withdraw(lease.id):
                _failure_log.warning(lease.scheduler, "cannot deliver the offer: %s", error)
                self.on_offer_lapsed(lease.scheduler)
                self.on_capacity_freed()
        else:
            self._telemetry.offers.add(1, {"outcome": "sent"})
            self._telemetry.offer_latency.record(trio.current_time() - waiting.since)
            _offer_log.info(lease.scheduler, "offered lease %s at %g", lease.id, price)
        finally:
            self._end_sending(lease.scheduler)

    def _end_sending(self, scheduler: str) -> None:
        self._sending[scheduler] -= 1
        if self._sending[scheduler] == _MAX_SENDING // 2:
            self.on_capacity_freed()  # the limit may have held back its next requests
        elif not self._sending[scheduler]:
            del self._sending[scheduler]
