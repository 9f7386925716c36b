"""Find workers: choose the best offers, and turn them into leases."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import trio

from hypha_devnet.client import Lease, Offer, SchedulerClient, Wanted
from hypha_messages.api import WorkerOffer

OFFER_WINDOW_S = 0.25
"""How long to wait for better offers once there is one; a temporary lease lasts 500 ms."""

_WEIGHTS = {"gpu": 25.0, "cpu": 1.0, "memory": 0.1, "storage": 0.01}


class AllocationError(Exception):
    """There are not enough workers."""


async def allocate(
    client: SchedulerClient,
    wanted: Wanted,
    leases: list[Lease],
    on_lease: Callable[[Lease], None],
    *,
    max_price: float,
    deadline_s: float,
    excluded: set[str],
) -> None:
    """Fill a list up with leases on different workers; AllocationError if there are not enough by the deadline.

    Drops the leases that are lost meanwhile. Calls `on_lease` with each new lease at once.
    """
    with trio.move_on_after(deadline_s):
        while True:
            leases[:] = [lease for lease in leases if not lease.lost.is_set()]
            if len(leases) >= wanted.count:
                return
            taken = excluded | {lease.peer_id for lease in leases}
            missing = replace(wanted, count=wanted.count - len(leases))
            for offer in await _best_offers(client, missing, max_price, taken):
                if lease := await client.take(offer, wanted.role):
                    leases.append(lease)
                    on_lease(lease)
    raise AllocationError(f"found {len(leases)} of {wanted.count} for {wanted.role} within {deadline_s:g} s")


def choose(offers: Iterable[Offer], count: int, max_price: float, excluded: Iterable[str], now: float) -> list[Offer]:
    """Return the best offers: at most `count`, one of each peer, and no expensive, expired or excluded ones."""
    best: dict[str, Offer] = {}
    for offer in sorted(offers, key=lambda offer: _unit_price(offer.message)):
        if offer.message.price <= max_price and offer.message.timeout.timestamp > now and offer.peer_id not in excluded:
            best.setdefault(offer.peer_id, offer)
    return list(best.values())[:count]


async def _best_offers(client: SchedulerClient, wanted: Wanted, max_price: float, excluded: set[str]) -> list[Offer]:
    def best(offers: list[Offer]) -> list[Offer]:
        return choose(offers, wanted.count, max_price, excluded, time.time())

    return await client.collect(wanted, best, settle_s=OFFER_WINDOW_S)


def _unit_price(offer: WorkerOffer) -> float:
    """Return the price per weighted unit of the offered resources."""
    units = sum(weight * getattr(offer.resources, name) for name, weight in _WEIGHTS.items())
    return offer.price / units if units > 0 else math.inf
