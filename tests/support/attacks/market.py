"""Attacks on the market by a certified scheduler that speaks its protocols completely."""

from contextlib import suppress

import trio

from hypha_devnet.client import Offer, SchedulerClient, Wanted
from hypha_messages.advertisement import WorkerSpec
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources
from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.network import NetworkConfig, open_network
from support.attacks.raw_peer import Tally
from support.attacks.target import Target

NOTHING = Wanted(WorkerSpec(resources=Resources(), executor=[ExecutorDescriptor(class_="train", name="test")]), bid=1.0)
CONFIG = NetworkConfig(listen_addresses=("/ip4/127.0.0.1/tcp/0",), exclude_cidr=())


async def leases_for_nothing(identity: Identity, target: Target, tally: Tally) -> None:
    """Request nothing at a bid of 1, take every offer, and keep every lease."""
    async with open_network(identity, CONFIG) as network, trio.open_nursery() as nursery:
        await network.dial(target.address)
        scheduler = SchedulerClient(network)

        async def take(offer: Offer) -> None:
            with suppress(NetworkError):
                if lease := await scheduler.take(offer, "trainer"):
                    tally.connections += 1  # leases held
                    await scheduler.keep(lease)

        requests = []
        while True:
            for _ in range(20):
                with suppress(NetworkError):
                    requests.append(await scheduler.advertise(NOTHING))
                    tally.attempts += 1
            await trio.sleep(0.1)
            for request in requests[-100:]:
                for offer in request.offers:
                    nursery.start_soon(take, offer)
                request.offers.clear()
            del requests[:-100]


async def lapsed_offers(identity: Identity, target: Target, tally: Tally) -> None:
    """Request workers a hundred times a second, and take none."""
    wanted = Wanted(
        WorkerSpec(resources=Resources(cpu=1, memory=1, storage=1), executor=NOTHING.spec.executor), bid=100.0
    )
    async with open_network(identity, CONFIG) as network:
        await network.dial(target.address)
        scheduler = SchedulerClient(network)
        while True:
            for _ in range(10):
                with suppress(NetworkError):
                    await scheduler.advertise(wanted)
                    tally.attempts += 1
            await trio.sleep(0.1)
