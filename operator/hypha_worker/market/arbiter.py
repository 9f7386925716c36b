"""Receives the requests of schedulers and answers with offers.

Requests that fit into the free capacity get an offer at once. While an offer is outstanding, competing requests are
collected until the window is over or capacity is freed. Then the best ones get offers. A request that does not fit
waits for free capacity as long as its scheduler waits.
"""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from hypha_messages.advertisement import DECODERS, RequestWorker
from hypha_messages.api import API, WorkerOffer
from hypha_messages.types import SystemTime
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.services.gossip_messages import Gossip
from hypha_worker.market.evaluator import Policy, Refusal
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.recent_requests import RecentRequests
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.market.settings import Settings
from hypha_worker.market.starts import StartRecord
from hypha_worker.market.waiting import Waiting, WaitingRequests
from hypha_worker.telemetry import Telemetry
from hypha_worker.traces.job_traces import logged_in

logger = logging.getLogger(__name__)
_refusal_log = RateLimitedLogger(logger)
_failure_log = RateLimitedLogger(logger)
_offer_log = RateLimitedLogger(logger)

_BACKLOG: Final = 4096
_MAX_SENDING: Final = 32
"""Offers under way to one scheduler, so that a slow scheduler blocks only a part of the worker."""


class Arbiter:
    """Decides which requests get offers, and sends the offers.

    `starts` limits the offers while jobs do not start.
    """

    def __init__(
        self,
        network: Network,
        ledger: Ledger,
        settings: Settings,
        telemetry: Telemetry,
        *,
        starts: StartRecord,
        waiting: WaitingRequests,
        requests_per_s: float,
        wall_clock: Callable[[], float],
    ) -> None:
        self._network = network
        self._ledger = ledger
        self._settings = settings
        self._starts = starts
        self._waiting = waiting
        self._requests_per_s = requests_per_s
        self._telemetry = telemetry
        self._traces = telemetry.traces
        self._wall_clock = wall_clock
        self._sending: Counter[str] = Counter()
        self._wake = trio.Event()
        self._capacity_freed = False
        self._stopped = False
        self.requests = RequestTally()
        self.recent = RecentRequests()

    async def run(self) -> None:
        """Answer requests until cancelled."""
        async with trio.open_nursery() as nursery:
            for topic in self._settings.policy.topics:
                nursery.start_soon(self._listen, topic)
            while True:
                with trio.move_on_after(self._waiting.due_in(trio.current_time())):
                    await self._wake.wait()
                self._wake = trio.Event()
                for lease, waiting in self._choose():
                    nursery.start_soon(self._send_offer, lease, waiting)

    def stop(self) -> None:
        """Answer no more requests, because the node ends."""
        self._stopped = True

    def apply(self, settings: Settings) -> None:
        """Decide by other settings from now on. The topics stay."""
        before, self._settings = self._settings.policy, settings
        policy, now = settings.policy, self._wall_clock()
        for waiting in self._waiting.all:
            refusal = policy.exclusion(waiting.scheduler) or policy.refusal(waiting.request, now)
            if refusal is not None:
                self._waiting.remove(waiting)
                self.recent.on_refused(waiting.scheduler, waiting.request, refusal, now)
            if before.postpones(waiting.request) and not policy.postpones(waiting.request):
                self._record(waiting.scheduler, waiting.request, refusal)
        self.on_capacity_freed()

    @property
    def policy(self) -> Policy:
        """What it decides by now."""
        return self._settings.policy

    @property
    def silence(self) -> str | None:
        """Why the worker makes no offers at all; None if it makes some."""
        if self._stopped:
            return "the node is stopping"
        if self._settings.suspended:
            return "the worker is suspended"
        if not self._settings.offers:
            return "jobs could not run; see the conditions of the HyphaWorker"
        return "the last jobs did not start" if self._starts.max_unstarted == 0 else None

    def on_capacity_freed(self) -> None:
        """Consider waiting requests again, because leases have ended."""
        self._capacity_freed = True
        self._wake.set()

    def on_offer_lapsed(self, scheduler: str) -> None:
        """Record that a scheduler let an offer lapse."""
        self._waiting.record_lapsed(scheduler, trio.current_time())

    async def _listen(self, topic: str) -> None:
        decode, rate = DECODERS[topic], self._requests_per_s
        with self._network.subscribe(topic, decode, _BACKLOG, rate, self._serves) as channel:
            logger.info("subscribed to %s, on which schedulers publish requests", topic)
            async for gossip in channel:
                self._take(gossip)
                with suppress(trio.WouldBlock):
                    for _ in range(_BACKLOG):  # requests that arrived together compete
                        self._take(channel.receive_nowait())
                self._wake.set()

    def _serves(self, scheduler: str) -> bool:
        """Whether requests of a scheduler are considered. Called before anything of them is verified or decoded."""
        if (exclusion := self._settings.policy.exclusion(scheduler)) is None:
            return True
        self.requests.record_excluded(exclusion)
        self.recent.on_excluded(exclusion, self._wall_clock())
        _refusal_log.info(scheduler, "its requests get no offer: %s", exclusion.message)
        return False

    def _take(self, gossip: Gossip[RequestWorker]) -> None:
        """Refuse one request or let it wait for an offer."""
        now, wall_clock = trio.current_time(), self._wall_clock()
        request, policy = gossip.message, self._settings.policy
        if (why := self.silence) is not None:
            self.recent.on_silence(gossip.source, request, why, wall_clock)
            self._telemetry.requests.add(1, {"decision": "ignored"})
            return
        refusal = policy.exclusion(gossip.source) or policy.refusal(request, wall_clock)
        if refusal is not None:
            self.recent.on_refused(gossip.source, request, refusal, wall_clock)
            self._record(gossip.source, request, refusal)
        elif not self._ledger.answered(gossip.source, request.id):
            if not self._waiting.add(Waiting(gossip.source, request, now)):
                self._telemetry.requests.add(1, {"decision": "ignored"})
                return
            self.recent.on_waiting(gossip.source, request, wall_clock)
            if not policy.postpones(request):
                self._record(gossip.source, request, None)

    def _record(self, scheduler: str, request: RequestWorker, refusal: Refusal | None) -> None:
        """Record that a request was refused, or (None) is considered."""
        self.requests.record(refusal)
        if refusal is None:
            self._telemetry.requests.add(1, {"decision": "considered"})
        else:
            _refusal_log.info(scheduler, "request %s gets no offer: %s", request.id, refusal.message)
            self._telemetry.requests.add(1, {"decision": "refused", "reason": refusal.reason})

    def _choose(self) -> list[tuple[Lease, Waiting]]:
        """Reserve capacity for the best candidates."""
        now = trio.current_time()
        self._waiting.drop_expired(now, self._wall_clock())
        candidates = () if self.silence else self._candidates(now)
        if not candidates:
            return []
        policy = self._settings.policy
        if not any(self._ledger.fits([least]) for least in policy.least):  # rating many requests in vain takes long
            self._waiting.pass_over()
            return []
        rated = self._wall_clock()
        free = self._ledger.free()
        ranked = sorted(
            candidates,
            key=lambda w: (
                not self._waiting.stands_back(w.scheduler, now),
                policy.score(w.scheduler, w.request, free),
            ),
            reverse=True,
        )
        chosen = []
        for waiting in ranked:
            arrived = rated - (now - waiting.since)
            if (lease := self._reserve(waiting, arrived)) is not None:
                self._traces.hold(lease.trace)
                self._traces.record(lease.trace, "advertisement", arrived, end=rated)
                self._traces.record(lease.trace, "evaluation", rated, attributes={"requests": len(candidates)})
                self._waiting.remove(waiting)
                self.recent.on_offered(lease)
                self._sending[waiting.scheduler] += 1
                chosen.append((lease, waiting))
        self._waiting.pass_over()
        return chosen

    def _reserve(self, waiting: Waiting, arrived: float) -> Lease | None:
        """Reserve what an offer for this request needs. None if that is not possible now."""
        most, policy, request = self._starts.max_unstarted, self._settings.policy, waiting.request
        if policy.postpones(request):
            return None
        if self._sending[waiting.scheduler] >= _MAX_SENDING or (most is not None and self._ledger.unstarted >= most):
            return None
        price, begin = policy.asked_price(request), partial(self._traces.begin, arrived)
        wanted = waiting.scheduler, request.id, request.spec.executor
        leases = (
            self._ledger.offer(*wanted, resources, price=price, begin_trace=begin)
            for resources in policy.options(request)
        )
        return next((lease for lease in leases if lease is not None), None)

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
        least = (next(iter(self._settings.policy.options(waiting.request)), None) for waiting in fresh)
        return fresh if self._ledger.fits(resources for resources in least if resources) else ()

    async def _send_offer(self, lease: Lease, waiting: Waiting) -> None:
        offer = WorkerOffer(
            id=lease.id,
            request_id=lease.request_id,
            price=lease.price,
            resources=lease.resources,
            timeout=SystemTime.from_timestamp(lease.deadline),
        )
        began = self._wall_clock()
        try:
            await self._network.request(lease.scheduler, API, offer, timeout_s=self._ledger.rules.temporary_s)
        except NetworkError as error:
            if self._ledger.withdraw(lease.id):
                self._traces.discard(lease.trace)
                _failure_log.warning(lease.scheduler, "cannot deliver the offer: %s", error)
                self.on_offer_lapsed(lease.scheduler)
                self.on_capacity_freed()
        else:
            self._telemetry.offers_sent.add(1)
            self._telemetry.offer_latency.record(trio.current_time() - waiting.since)
            self._traces.record(
                lease.trace, "offer", began, attributes={"price": lease.price, "request": str(lease.request_id)}
            )
            with logged_in(lease.trace.context("offer") if lease.trace else None):
                _offer_log.info(lease.scheduler, "offered lease %s at %g", lease.id, lease.price)
        finally:
            self._end_sending(lease.scheduler)

    def _end_sending(self, scheduler: str) -> None:
        self._sending[scheduler] -= 1
        if self._sending[scheduler] == _MAX_SENDING // 2:
            self.on_capacity_freed()  # the limit may have held back its next requests
        elif not self._sending[scheduler]:
            del self._sending[scheduler]
