"""The latest requests of schedulers and how the worker answered each, for people. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Literal
from uuid import UUID

from hypha_messages.advertisement import RequestWorker
from hypha_messages.types import Resources
from hypha_worker.market.evaluator import Refusal
from hypha_worker.market.ledger import Lease

MAX_REQUESTS: Final = 50
MAX_REASON_CHARS: Final = 256
_MAX_EXECUTORS: Final = 3
_MAX_EXECUTOR_CHARS: Final = 64

Answer = Literal["waiting", "offered", "refused", "none"]
"""`none`: the worker made no offers at all."""


@dataclass
class Heard:
    """A request, or several of one scheduler that got the same refusal.

    Text in it is that of peers: it is cut, but not escaped.

    Attributes:
        at: when the latest of them was heard, in seconds since the epoch.
        scheduler: its peer id. Empty if nobody verified whose request it is.
        executors: the first that it names.
        reason: why it gets no offer.
        count: how many requests these are.
        price: of the offer.
        lease_id: of the lease that was offered.
        request_id: of the request, to find out whether it waits.
    """

    at: float
    scheduler: str = ""
    executors: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    bid: float = 0.0
    answer: Answer = "refused"
    reason: str = ""
    count: int = 0
    price: float = 0.0
    lease_id: UUID | None = None
    request_id: UUID | None = None


class RecentRequests:
    """The last `MAX_REQUESTS` of them. Times are seconds since the epoch.

    Refusals of one scheduler for the same reason count as one, so that a scheduler that keeps asking in vain does not
    hide the others.
    """

    def __init__(self) -> None:
        self._heard: OrderedDict[Hashable, Heard] = OrderedDict()

    @property
    def newest_first(self) -> list[Heard]:
        """The requests that are remembered."""
        return list(reversed(self._heard.values()))

    def on_excluded(self, refusal: Refusal, now: float) -> None:
        """Record that a request of a scheduler without offers was dropped before anybody verified whose it is."""
        heard = self._renew(refusal.reason, "", now)
        heard.reason = refusal.message[:MAX_REASON_CHARS]

    def on_refused(self, scheduler: str, request: RequestWorker, refusal: Refusal, now: float) -> None:
        """Record that a request never gets an offer, even if it has waited for one."""
        self._heard.pop((scheduler, request.id), None)
        heard = self._renew((scheduler, refusal.reason), scheduler, now)
        _describe(heard, request)
        heard.reason = refusal.message[:MAX_REASON_CHARS]

    def on_silence(self, scheduler: str, request: RequestWorker, why: str, now: float) -> None:
        """Record that the worker made no offers at all when a request arrived."""
        heard = self._renew((scheduler, "none"), scheduler, now)
        _describe(heard, request)
        heard.answer, heard.reason = "none", why

    def on_waiting(self, scheduler: str, request: RequestWorker, now: float) -> None:
        """Record that a request waits for an offer."""
        heard = self._renew((scheduler, request.id), scheduler, now)
        _describe(heard, request)
        heard.answer, heard.request_id = "waiting", request.id

    def on_offered(self, lease: Lease) -> None:
        """Record that an offer was made for a request that waited."""
        if heard := self._heard.get((lease.scheduler, lease.request_id)):
            heard.answer, heard.price, heard.lease_id = "offered", lease.price, lease.id

    def _renew(self, key: Hashable, scheduler: str, now: float) -> Heard:
        heard = self._heard.setdefault(key, Heard(now, scheduler))
        heard.at = now
        heard.count += 1
        self._heard.move_to_end(key)
        if len(self._heard) > MAX_REQUESTS:
            self._heard.popitem(last=False)
        return heard


def _describe(heard: Heard, request: RequestWorker) -> None:
    heard.resources, heard.bid = request.spec.resources, request.bid
    heard.executors = tuple(str(executor)[:_MAX_EXECUTOR_CHARS] for executor in request.spec.executor[:_MAX_EXECUTORS])
