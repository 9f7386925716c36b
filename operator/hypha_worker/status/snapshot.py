"""Makes the parts of a snapshot from the state of the node. Pure functions. Each bounds what it returns."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import fsum
from typing import Final, Literal
from uuid import UUID

from hypha_contracts.reach import DESCRIPTIONS, REMEDY
from hypha_contracts.text import escaped
from hypha_contracts.units import RESOURCES, UNITS
from hypha_network.status import ConnectionStatus, NetworkStatus
from hypha_worker.job_history import JobHistory, JobRecord
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.recent_requests import MAX_REASON_CHARS, Heard
from hypha_worker.status.model import (
    Account,
    Earnings,
    JobState,
    LeaseState,
    LossCurve,
    NetworkState,
    PeerState,
    RequestState,
    ResourceState,
)

MAX_LEASES: Final = 256
MAX_JOBS: Final = 64
MAX_PEERS: Final = 100
MAX_ACCOUNTS: Final = 32
MAX_ADDRESSES: Final = 32
_MAX_NAME_CHARS: Final = 128
_ROLES: Final = ("gateway", "scheduler", "peer")

_ANSWERS: Final[dict[str | None, Literal["offered", "accepted", "lapsed", "undelivered"]]] = {
    None: "offered",
    "accepted": "accepted",
    "lapsed": "lapsed",
    "withdrawn": "undelivered",
}


def network_of(status: NetworkStatus, configured: Iterable[str], addresses: Iterable[str]) -> NetworkState:
    """Return how the node is connected, and how peers reach it."""
    return NetworkState(
        gateways=status.gateways[:MAX_ADDRESSES],
        configured_gateways=tuple(configured)[:MAX_ADDRESSES],
        addresses=tuple(addresses)[:MAX_ADDRESSES],
        reach=status.reach,
        reached=DESCRIPTIONS[status.reach] if status.reach else "not known before a gateway has observed the node",
        remedy=None if status.reach is None or status.reach.takes_bulk else REMEDY,
    )


def resources_of(ledger: Ledger) -> tuple[ResourceState, ...]:
    """Return what the worker has of each resource, and how much of it is leased."""
    total, leased = ledger.rules.capacity.total, ledger.reserved()
    return tuple(
        ResourceState(name=name, unit=UNITS[name], total=getattr(total, name), leased=getattr(leased, name))
        for name in RESOURCES
    )


def leases_of(ledger: Ledger) -> tuple[LeaseState, ...]:
    """Return the leases, and after them the offers."""
    ordered = sorted(ledger.leases, key=lambda lease: lease.state == "offered")
    return tuple(
        LeaseState(
            id=str(lease.id),
            scheduler=lease.scheduler,
            state=lease.state,
            executors=_names(map(str, lease.executors)),
            resources=lease.resources,
            price=lease.price,
            deadline=lease.deadline,
            accepted=lease.accepted,
            task_id=str(lease.task_id) if lease.task_id else None,
            reason=lease.end_reason,
        )
        for lease in ordered[:MAX_LEASES]
    )


def jobs_of(history: JobHistory, ledger: Ledger) -> tuple[JobState, ...]:
    """Return the live jobs, newest first, and after them those that ended."""
    leases = {lease.task_id: lease for lease in ledger.leases}
    return tuple(_job(record, leases.get(record.task_id), history) for record in history.newest_first[:MAX_JOBS])


def _job(record: JobRecord, lease: Lease | None, history: JobHistory) -> JobState:
    ending = lease is not None and lease.state == "ending"
    x, y = record.loss.points()
    return JobState(
        task_id=str(record.task_id),
        job_id=str(record.job_id),
        executor=record.executor,
        scheduler=record.scheduler,
        phase="ending" if ending else record.phase,
        reason=lease.end_reason if ending and lease else record.reason,
        began=record.began,
        ended=record.ended,
        deadline=lease.deadline if lease else None,
        round=record.progress.round,
        samples=record.progress.samples,
        samples_per_second=history.samples_per_second(record),
        rounds_per_hour=record.progress.rounds_per_hour,
        batches=record.progress.batches,
        total_batches=record.progress.total_batches,
        estimated_end=history.estimated_end(record),
        metrics=record.progress.metrics,
        loss=LossCurve(x=x, y=y),
    )


def requests_of(
    heard: Iterable[Heard], ledger: Ledger, waits: Callable[[tuple[str, UUID]], bool]
) -> tuple[RequestState, ...]:
    """Return the requests and the answer to each. `waits` says whether a request still waits."""
    return tuple(_request(one, ledger, waits) for one in heard)


def _request(heard: Heard, ledger: Ledger, waits: Callable[[tuple[str, UUID]], bool]) -> RequestState:
    answer: Literal["offered", "accepted", "lapsed", "undelivered", "waiting", "passed", "refused", "none"]
    reason = escaped(heard.reason, MAX_REASON_CHARS)
    if heard.answer == "offered" and heard.lease_id is not None:
        answer = _ANSWERS[ledger.offer_end(heard.lease_id)]
    elif heard.answer == "waiting" and heard.request_id is not None:
        answer = "waiting" if waits((heard.scheduler, heard.request_id)) else "passed"
        reason = "" if answer == "waiting" else "not enough was free while it waited"
    else:
        answer = "none" if heard.answer == "none" else "refused"
    return RequestState(
        at=heard.at,
        scheduler=heard.scheduler,
        executors=_names(heard.executors),
        resources=heard.resources,
        bid=heard.bid,
        count=heard.count,
        answer=answer,
        price=heard.price if heard.lease_id else None,
        reason=reason,
    )


def peers_of(
    connections: Iterable[ConnectionStatus], gateways: Iterable[str], schedulers: Iterable[str]
) -> tuple[tuple[PeerState, ...], int]:
    """Return the peers, gateways and schedulers first, then those that moved most bytes, and how many peers there are.

    Args:
        connections: of all peers.
        gateways: the peer ids of the gateways.
        schedulers: the peer ids of the schedulers that have leases.
    """
    by_peer: defaultdict[str, list[ConnectionStatus]] = defaultdict(list)
    for connection in connections:
        by_peer[connection.peer_id].append(connection)
    roles: dict[str, Literal["gateway", "scheduler", "peer"]] = dict.fromkeys(schedulers, "scheduler")
    roles |= dict.fromkeys(gateways, "gateway")
    peers = (_peer(peer_id, found, roles.get(peer_id, "peer")) for peer_id, found in by_peer.items())
    shown = heapq.nsmallest(
        MAX_PEERS, peers, key=lambda peer: (_ROLES.index(peer.role), -peer.received_bytes - peer.sent_bytes)
    )
    return tuple(shown), len(by_peer)


def _peer(
    peer_id: str, connections: Sequence[ConnectionStatus], role: Literal["gateway", "scheduler", "peer"]
) -> PeerState:
    best = min(connections, key=lambda connection: connection.relayed)
    return PeerState(
        peer_id=peer_id,
        role=role,
        relayed=best.relayed,
        inbound=best.inbound,
        transport=best.transport,
        connections=len(connections),
        round_trip_s=best.round_trip_s,
        received_bytes=sum(connection.received_bytes for connection in connections),
        sent_bytes=sum(connection.sent_bytes for connection in connections),
    )


def earnings_of(ledger: Ledger, now: float) -> Earnings:
    """Return what the schedulers have leased until now, at the agreed prices."""
    held = [lease for lease in ledger.leases if lease.accepted is not None]
    accruing: defaultdict[str, float] = defaultdict(float)
    for lease in held:
        accruing[lease.scheduler] += lease.price * max(0.0, now - (lease.accepted or now))
    ended = {account.scheduler: account for account in ledger.accounts.of}
    accounts = [
        Account(
            scheduler=name,
            leases=account.leases if (account := ended.get(name)) else 0,
            leased_s=account.leased_s if account else 0.0,
            earned=account.earned if account else 0.0,
            accruing=accruing.get(name, 0.0),
        )
        for name in ended.keys() | accruing.keys()
    ]
    accounts.sort(key=lambda account: (-account.earned - account.accruing, account.scheduler))
    return Earnings(
        accounts=tuple(accounts[:MAX_ACCOUNTS]),
        earned=fsum(account.earned for account in accounts),
        accruing=fsum(account.accruing for account in accounts),
        per_s=fsum(lease.price for lease in held),
    )


def _names(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(escaped(text, _MAX_NAME_CHARS) for text in texts)
