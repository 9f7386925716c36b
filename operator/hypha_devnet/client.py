"""A scheduler's side of the worker API: advertise, collect offers, hold leases, dispatch jobs, answer workers."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import trio

from hypha_devnet.events import Events
from hypha_messages import api
from hypha_messages.advertisement import RequestWorker, WorkerSpec, encode, topic_of
from hypha_messages.job import JobSpec
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.types import Message, SystemTime
from hypha_network.changes import Changes
from hypha_network.errors import NetworkError
from hypha_network.network import Network

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
"""How long workers may answer an advertisement."""
ADVERTISE_EVERY_S = 1.0
"""How long the client waits for offers; the next advertisement reaches workers that joined since."""
PUBLISH_RETRY_S = 0.25
RENEWAL_TIMEOUT_S = 3.0
RENEWAL_RETRY_S = 0.5
RENEW_AT = 1 / 3
"""The client renews a lease after this part of it; a worker that restarts has the rest to come back."""
DISPATCH_TIMEOUT_S = 10.0
DISPATCH_RETRY_S = 0.5
MAX_OFFERS = 1024


@dataclass(frozen=True)
class Wanted:
    """The workers that a request asks for, how many, and the published bid; `role` names their task in events."""

    spec: WorkerSpec
    bid: float = 100.0
    role: str = "trainer"
    count: int = 1


@dataclass(frozen=True)
class Offer:
    """A worker's offer; `arrived` is in seconds of the monotonic clock."""

    peer_id: str
    message: api.WorkerOffer
    arrived: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Request:
    """A published request. The client adds the offers that answer it for as long as the caller holds this object."""

    id: uuid.UUID = field(default_factory=uuid.uuid4)
    offers: list[Offer] = field(default_factory=list)


@dataclass(eq=False)
class Lease:
    """A lease on a worker.

    Attributes:
        offer: The offer that it was made from.
        role: The worker's task, as events name it.
        expires: When it ends, in wall-clock seconds.
        refused: Whether the worker has ever refused to renew it.
        abandoned: Whether the client has to stop renewing it.
        lost: Set once it has ended although the client went on renewing it.
    """

    offer: Offer
    role: str
    expires: float
    refused: bool = False
    abandoned: bool = False
    lost: trio.Event = field(default_factory=trio.Event)

    @property
    def id(self) -> uuid.UUID:
        """The id under which the worker knows it."""
        return self.offer.message.id

    @property
    def peer_id(self) -> str:
        """The worker."""
        return self.offer.peer_id


class SchedulerClient:
    """Makes a scheduler's requests and answers those of its workers.

    Args:
        network: where the scheduler is a peer.
        events: gets every request, offer and lease.
        assign_slice: takes a worker and a dataset's name, and returns the worker's next slice.
        on_status: takes a worker and its report about a task.
        on_progress: takes a worker and its job's progress, and returns the answer for the job.
    """

    def __init__(
        self,
        network: Network,
        events: Events | None = None,
        *,
        assign_slice: Callable[[str, str], api.DataAssignment] | None = None,
        on_status: Callable[[str, api.ReportJobStatus], None] | None = None,
        on_progress: Callable[[str, ReportProgress], Awaitable[ProgressResponse]] | None = None,
    ) -> None:
        self.network = network
        self._events = events or Events()
        self._assign_slice = assign_slice
        self._on_status = on_status
        self._requests: WeakValueDictionary[uuid.UUID, Request] = WeakValueDictionary()
        self._offered = Changes()
        network.handle(api.API, self._answer)
        if on_progress is not None:
            network.handle(PROGRESS, on_progress)

    async def advertise(self, wanted: Wanted) -> Request:
        """Publish a request once there is a peer that subscribes; NetworkError if that is impossible."""
        topic = topic_of(wanted.spec)
        await self.network.wait_until(lambda: bool(self.network.subscribers(topic)))
        request = Request()
        self._requests[request.id] = request
        timeout = SystemTime.from_timestamp(time.time() + REQUEST_TIMEOUT_S)
        message = RequestWorker(id=request.id, spec=wanted.spec, timeout=timeout, bid=wanted.bid)
        await self.network.publish(topic, encode(message))
        self._events.emit("request", role=wanted.role, request=str(request.id), wanted=wanted.count, bid=wanted.bid)
        return request

    async def collect(
        self,
        wanted: Wanted,
        choose: Callable[[list[Offer]], list[Offer]],
        *,
        within_s: float = ADVERTISE_EVERY_S,
        settle_s: float = 0.0,
    ) -> list[Offer]:
        """Publish a request and return the offers that `choose` takes.

        Args:
            wanted: what to ask for.
            choose: takes the best of all offers so far.
            within_s: how long to wait until it takes any.
            settle_s: how long to wait for better ones after that, within the same time.
        """
        try:
            request = await self.advertise(wanted)
        except NetworkError as error:
            logger.info("cannot advertise yet: %s", error)
            await trio.sleep(PUBLISH_RETRY_S)
            return []
        with trio.move_on_after(within_s):
            await self._offered.until(lambda: bool(choose(request.offers)))
            await trio.sleep(settle_s)
        return choose(request.offers)

    async def take(self, offer: Offer, role: str) -> Lease | None:
        """Turn an offer into a lease by renewing it; None if that fails."""
        lease = Lease(offer, role, offer.message.timeout.timestamp)
        return lease if await self._try_to_renew(lease) else None

    async def hire(self, wanted: Wanted, worker: str | None = None, *, within_s: float = ADVERTISE_EVERY_S) -> Lease:
        """Advertise until a worker (of this peer id, if given) grants a lease."""
        while True:
            for offer in await self.collect(
                wanted, lambda offers: [o for o in offers if worker in (None, o.peer_id)], within_s=within_s
            ):
                if lease := await self.take(offer, wanted.role):
                    return lease

    async def renew(self, lease: Lease) -> bool:
        """Renew a lease once; False if the worker refuses. Raises NetworkError if it does not answer."""
        outcome = await self.network.request(
            lease.peer_id, api.API, api.RenewLease(id=lease.id), timeout_s=RENEWAL_TIMEOUT_S
        )
        if not isinstance(outcome, api.RenewLeaseOutcome) or outcome.timeout is None:
            lease.refused = True
            return False
        lease.expires = outcome.timeout.timestamp
        self._events.emit("lease", peer=lease.peer_id, role=lease.role, expires=round(lease.expires, 3))
        return True

    async def keep(self, lease: Lease) -> None:
        """Renew a lease repeatedly; return once it is abandoned or lost."""
        renewed = True
        while (left_s := lease.expires - time.time()) > 0:
            # After a failed renewal, retry soon, because a restarting worker may be back before the lease ends.
            await trio.sleep(max(left_s * RENEW_AT, RENEWAL_RETRY_S) if renewed else RENEWAL_RETRY_S)
            if lease.abandoned:
                return
            renewed = await self._try_to_renew(lease)
        self._events.emit("lease_lost", peer=lease.peer_id, role=lease.role)
        lease.lost.set()

    async def dispatch_until_answered(self, lease: Lease, spec: JobSpec, task_id: uuid.UUID) -> bool:
        """Dispatch a job, repeatedly while the lease lasts; False if the worker refuses it.

        A worker that restarts knows the task by its id. Raises NetworkError if the lease is lost before an answer.
        """
        while True:
            try:
                return await self.dispatch(lease, spec, task_id)
            except NetworkError as error:
                if lease.lost.is_set():
                    raise
                logger.warning("cannot dispatch to %s yet: %s", lease.peer_id, error)
                await trio.sleep(DISPATCH_RETRY_S)

    async def dispatch(self, lease: Lease, spec: JobSpec, task_id: uuid.UUID) -> bool:
        """Dispatch a job; False if the worker refuses it. Raises NetworkError if it does not answer."""
        request = api.DispatchJob(id=task_id, spec=spec)
        outcome = await self.network.request(lease.peer_id, api.API, request, timeout_s=DISPATCH_TIMEOUT_S)
        return isinstance(outcome, api.DispatchJobOutcome) and not outcome.failed

    async def _try_to_renew(self, lease: Lease) -> bool:
        try:
            if await self.renew(lease):
                return True
            logger.warning("%s refuses to renew its lease", lease.peer_id)
        except NetworkError as error:
            logger.warning("cannot renew the lease of %s: %s", lease.peer_id, error)
        return False

    async def _answer(self, peer_id: str, message: Message) -> Message | None:
        match message:
            case api.WorkerOffer():
                self._record_offer(peer_id, message)
                return api.WorkerOfferAccepted()
            case api.RequestData() if self._assign_slice is not None:
                return self._assign_slice(peer_id, message.dataset)
            case api.ReportJobStatus():
                if self._on_status is not None:
                    self._on_status(peer_id, message)
                return api.ReportJobStatusReceived()
        return None

    def _record_offer(self, peer_id: str, message: api.WorkerOffer) -> None:
        request = self._requests.get(message.request_id)
        if request is not None and len(request.offers) < MAX_OFFERS:
            request.offers.append(Offer(peer_id, message))
            resources = message.resources.model_dump(mode="json")
            self._events.emit("offer", peer=peer_id, price=message.price, resources=resources)
            self._offered.notify()
