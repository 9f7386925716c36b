"""What people want to know of a HyphaWorker: whether it offers and why not, what it sells, and what it earns. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hypha_contracts.kinds import Manifest
from hypha_contracts.object_status import find_condition
from hypha_contracts.reach import Reach
from hypha_contracts.reasons import WorkerReason
from hypha_contracts.text import escaped
from hypha_kubectl.views.jobs import Job, in_order, job_of, seconds_since, time_of
from hypha_kubectl.views.problems import Problem

RESOURCES: Final = (("cpu", "cores"), ("memory", "GB"), ("storage", "GB"), ("gpu", "GB"))
"""The resources, and what each amount counts."""
_NO_OPERATOR: Final = Problem(
    "NotReported",
    "No operator has reported on this worker.",
    "Run `kubectl hypha check`: the operator does not run, or serves another namespace.",
)


@dataclass(frozen=True)
class Amount:
    """One resource of a worker, in cores or GB.

    Attributes:
        used: what leases reserve.
        limit: what all leases may reserve now, because of quotas and nodes.
        total: what the specification offers.
    """

    resource: str
    unit: str
    used: float
    limit: float
    total: float


@dataclass(frozen=True)
class Lease:
    """A lease that a scheduler holds and that has no job yet."""

    id: str
    scheduler: str
    executors: tuple[str, ...]
    price: float
    leased_s: float
    earned: float
    amounts: dict[str, float]


@dataclass(frozen=True)
class Earnings:
    """What a worker earned by bookkeeping, in the network's own unit. It is no payment.

    Attributes:
        leases: the number of ended leases.
        leased_s: their seconds.
        ended: what they earned.
        running: what the leases of now have earned so far.
        schedulers: of how many schedulers the ended leases were, at least.
    """

    leases: int
    leased_s: float
    ended: float
    running: float
    schedulers: int


@dataclass(frozen=True)
class Requests:
    """How the node judged the last hundred requests."""

    considered: int
    refused: int
    problem: Problem | None


@dataclass(frozen=True)
class Worker:
    """One worker.

    Attributes:
        ready: the condition `Ready`: None while nobody has reported it.
        message: the message of `Ready`.
        offers: whether the node makes offers.
        obstacles: why it does not, the cause first.
        warnings: what will cause trouble, such as a certificate that expires soon.
        circuits: addresses at which peers reach the node through gateways.
        addresses: addresses at which peers outside of the cluster reach it directly.
        listening: addresses at which the node accepts peers, from wherever these can be reached.
        reach: how peers reach the node; None if it does not know.
        expires: when its certificate expires.
    """

    namespace: str
    name: str
    peer_id: str | None
    created: datetime
    ready: bool | None
    reason: str
    message: str
    offers: bool
    obstacles: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    gateways: tuple[str, ...]
    circuits: tuple[str, ...]
    addresses: tuple[str, ...]
    listening: tuple[str, ...]
    reach: Reach | None
    expires: datetime | None
    price: float
    floor: float
    strategy: str
    amounts: tuple[Amount, ...]
    requests: Requests
    earnings: Earnings
    leases: tuple[Lease, ...]
    jobs: tuple[Job, ...]

    @property
    def is_suspended(self) -> bool:
        """Whether somebody suspended it, so that it makes no offers."""
        return any(obstacle.reason == WorkerReason.SUSPENDED for obstacle in self.obstacles)

    @property
    def is_full(self) -> bool:
        """Whether leases reserve everything of some resource, so that no offer is possible now."""
        return any(amount.used >= amount.limit for amount in self.amounts)


def workers_of(workers: Iterable[Manifest], jobs: Iterable[Manifest], now: datetime) -> list[Worker]:
    """Return workers with their jobs, by namespace and name."""
    by_worker: dict[tuple[str, str], list[Job]] = {}
    for manifest in jobs:
        job = job_of(manifest, now)
        by_worker.setdefault((job.namespace, job.worker), []).append(job)
    found = [
        worker_of(worker, by_worker.get((worker["metadata"]["namespace"], worker["metadata"]["name"]), []), now)
        for worker in workers
    ]
    return sorted(found, key=lambda worker: (worker.namespace, worker.name))


def worker_of(manifest: Manifest, jobs: Sequence[Job], now: datetime) -> Worker:
    """Return what people want to know of a HyphaWorker with these jobs."""
    metadata, spec, status = manifest["metadata"], manifest["spec"], manifest.get("status") or {}
    node, offer = status.get("node") or {}, spec.get("offer") or {}
    ready = find_condition(manifest, "Ready")
    leases = tuple(_lease_of(lease, now) for lease in node.get("leases") or ())
    obstacles = tuple(_obstacles(manifest))
    price = float(offer.get("price", 100.0))
    return Worker(
        namespace=metadata["namespace"],
        name=metadata["name"],
        peer_id=node.get("peerId") or status.get("peerId"),
        created=datetime.fromisoformat(metadata["creationTimestamp"]),
        ready={"True": True, "False": False}.get(ready.get("status", "")),
        reason=str(ready.get("reason") or _NO_OPERATOR.reason),
        message=escaped(str(ready.get("message") or "")),
        offers=not obstacles,
        obstacles=obstacles,
        warnings=tuple(_warnings(manifest)),
        gateways=_texts(node.get("gateways")),
        circuits=_texts(node.get("circuits")),
        addresses=_texts(status.get("externalAddresses")),
        listening=_texts(node.get("listening")),
        reach=Reach(node["reach"]) if node.get("reach") in set(Reach) else None,
        expires=time_of(node.get("certificateExpires")),
        price=price,
        floor=float(offer.get("floor", min(100.0, price))),
        strategy=str(offer.get("strategy", "whole")),
        amounts=tuple(_amounts(status)),
        requests=_requests_of(node.get("requests") or {}),
        earnings=_earnings(node.get("accounts") or (), leases, jobs),
        leases=leases,
        jobs=tuple(in_order(jobs)),
    )


def _obstacles(manifest: Manifest) -> Iterator[Problem]:
    """Yield why a worker makes no offers, causes before their consequences."""
    spec, status = manifest["spec"], manifest.get("status") or {}
    if manifest["metadata"].get("deletionTimestamp"):
        yield _of_condition(find_condition(manifest, "Ready"), WorkerReason.DRAINING)
        return
    if spec.get("suspend"):
        deadline = spec.get("suspendDeadline")
        until = f" The node ends jobs that still run at {deadline}." if deadline else " Running jobs finish."
        yield Problem(
            WorkerReason.SUSPENDED,
            f"The worker is suspended.{until}",
            f"Run `kubectl hypha resume {manifest['metadata']['name']} -n {manifest['metadata']['namespace']}`.",
        )
    ready = find_condition(manifest, "Ready")
    if not ready:
        yield _NO_OPERATOR
    elif ready.get("status") != "True":
        yield _of_condition(ready, WorkerReason.NOT_REPORTED)
    elif not (status.get("offering") or {}).get("enabled"):
        conditions = (find_condition(manifest, type_) for type_ in ("ExecutorsValid", "JobsStart"))
        broken = next((condition for condition in conditions if condition.get("status") != "True"), {})
        yield _of_condition(broken, WorkerReason.NOT_VALIDATED)


def _warnings(manifest: Manifest) -> Iterator[Problem]:
    identity = find_condition(manifest, "IdentityValid")
    if identity.get("reason") == WorkerReason.CERTIFICATE_EXPIRES_SOON:
        yield _of_condition(identity, WorkerReason.CERTIFICATE_EXPIRES_SOON)
    observed = (manifest.get("status") or {}).get("observedGeneration") or 0
    generation = manifest["metadata"].get("generation") or 0
    if find_condition(manifest, "Ready") and observed < generation:
        yield Problem(
            "NotObserved",
            "The operator has not seen the latest change of this worker.",
            "Wait. If this persists, run `kubectl hypha check`.",
        )


def _of_condition(condition: Any, default: WorkerReason) -> Problem:
    return Problem.of(str(condition.get("reason") or default), escaped(str(condition.get("message") or "")))


def _amounts(status: Manifest) -> Iterator[Amount]:
    total = status.get("capacity") or {}
    limit = (status.get("offering") or {}).get("limit") or total
    used = (status.get("node") or {}).get("allocated") or {}
    for resource, unit in RESOURCES:
        if total.get(resource):
            offered = float(total[resource])
            yield Amount(resource, unit, float(used.get(resource) or 0), float(limit.get(resource, offered)), offered)


def _requests_of(requests: Manifest) -> Requests:
    considered, refused = int(requests.get("considered") or 0), int(requests.get("refused") or 0)
    last = requests.get("lastRefusal") or {}
    problem = (
        Problem.of(str(last["reason"]), escaped(str(last.get("message", "")))) if last and not considered else None
    )
    return Requests(considered, refused, problem)


def _earnings(accounts: Iterable[Manifest], leases: Iterable[Lease], jobs: Iterable[Job]) -> Earnings:
    listed = list(accounts)
    return Earnings(
        leases=sum(int(account.get("leases") or 0) for account in listed),
        leased_s=sum(float(account.get("leasedSeconds") or 0) for account in listed),
        ended=sum(float(account.get("earned") or 0) for account in listed),
        running=sum(lease.earned for lease in leases) + sum(job.earned for job in jobs if not job.ended),
        schedulers=len(listed),
    )


def _lease_of(lease: Manifest, now: datetime) -> Lease:
    leased_s, price = seconds_since(lease.get("accepted"), now), float(lease.get("price") or 0)
    return Lease(
        id=str(lease.get("id", "")),
        scheduler=escaped(str(lease.get("scheduler", ""))),
        executors=_texts(f"{e.get('class', '')}/{e.get('name', '')}" for e in lease.get("executors") or ()),
        price=price,
        leased_s=leased_s,
        earned=price * leased_s,
        amounts={name: float((lease.get("resources") or {}).get(name) or 0) for name, _ in RESOURCES},
    )


def _texts(values: Iterable[Any] | None) -> tuple[str, ...]:
    return tuple(escaped(str(value)) for value in values or ())
