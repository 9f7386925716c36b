"""Nodes find the peers that a gateway knows where it forwards no gossip."""

from collections import defaultdict
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from hypha_messages.types import peer_id_from_ed25519
from hypha_network.changes import Changes
from hypha_network.errors import PeerUnreachable
from hypha_network.host import Host
from hypha_network.services import discovery
from hypha_network.services.discovery import EVERY_S, MAX_DIALS, RETRY_S, ROOM, Discovery, bucket_of, listed
from hypha_network.services.kademlia_lookup import K, key_of, peer_key
from hypha_network.wire.addresses import Address, parse
from support.certs import Pki
from support.networks import gateway, member, until

GATEWAY, OWN = (peer_id_from_ed25519(bytes([n]) * 32) for n in (254, 255))
ADDRESS = parse("/ip4/192.0.2.1/tcp/1")
OTHER_ADDRESS = parse("/ip4/192.0.2.2/tcp/1")
Table = dict[str, tuple[Address, ...]]


def peers(count: int, seed: int = 0) -> list[str]:
    return [peer_id_from_ed25519(seed.to_bytes(2, "big") + number.to_bytes(30, "big")) for number in range(count)]


@given(st.integers(0, 120), st.integers(0, 2**16 - 1))
@settings(deadline=None)
def test_every_peer_in_a_table_of_the_reference_is_listed(count: int, seed: int) -> None:
    buckets: defaultdict[int, list[str]] = defaultdict(list)
    for peer_id in peers(count, seed):
        bucket = buckets[bucket_of(peer_id, GATEWAY)]
        if len(bucket) < K:
            bucket.append(peer_id)
    table = {peer_id for bucket in buckets.values() for peer_id in bucket}
    asked = []

    async def ask(_: str, key: bytes) -> Table:
        asked.append(key)
        closest = sorted(table, key=lambda peer_id: peer_key(peer_id) ^ key_of(key))
        return dict.fromkeys(closest[:K], (ADDRESS,))

    assert trio.run(listed, GATEWAY, ask).keys() == table
    assert len(asked) == 1 if len(table) < K else len(asked) <= 2 + max(buckets)


@pytest.mark.anyio
async def test_a_node_connects_to_a_peer_that_joins_a_gateway_without_gossip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "EVERY_S", 0.02)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "worker", g) as worker:
        worker.subscribe("hypha/worker", bytes)
        async with member(pki, "scheduler", g) as scheduler:
            await until(scheduler, lambda: worker.peer_id in scheduler.subscribers("hypha/worker"))


@pytest.mark.anyio
async def test_gateways_are_asked_only_for_topics_to_which_they_do_not_subscribe() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "worker", g) as worker:
        assert worker._silent_gateways() == []
        worker.subscribe("hypha/worker", bytes)
        assert worker._silent_gateways() == [g.peer_id]
        g.subscribe("hypha/other", bytes)
        await until(worker, lambda: bool(worker.subscribers("hypha/other")))
        assert worker._silent_gateways() == [g.peer_id]
        g.subscribe("hypha/worker", bytes)
        await until(worker, lambda: bool(worker.subscribers("hypha/worker")))
        assert worker._silent_gateways() == []


class Lab:
    """A gateway with a table that the test sets, and peers that let themselves be dialled but never answer."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.table: Table = {}
        self.dialled: list[tuple[str, tuple[Address, ...]]] = []
        self.answers = trio.Event()
        self.host = SimpleNamespace(peer_id=OWN, connections={GATEWAY: ()}, connect=self.connect, changes=Changes())
        self.silent = [GATEWAY]
        self.announced = 0
        self.discovery = Discovery(cast("Host", self.host), self.ask, lambda: self.silent, self.announce)
        nursery.start_soon(self.discovery.run)

    async def announce(self) -> None:
        self.announced += 1

    async def ask(self, *_: Any) -> Table:
        return self.table

    async def connect(self, peer_id: str, addresses: tuple[Address, ...]) -> None:
        self.dialled.append((peer_id, addresses))
        await self.answers.wait()
        raise PeerUnreachable("it does not answer")

    async def later(self, seconds: float) -> list[tuple[str, tuple[Address, ...]]]:
        """Return what is dialled within this time."""
        await trio.sleep(seconds)
        dialled, self.dialled = self.dialled, []
        return dialled


def jumping(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Let time jump whenever all tasks wait."""

    def run() -> None:
        trio.run(test, clock=MockClock(autojump_threshold=0))

    return run


@jumping
async def test_a_peer_is_tried_once_in_a_while_or_at_new_addresses() -> None:
    async with trio.open_nursery() as nursery:
        lab = Lab(nursery)
        lab.answers.set()
        [peer_id] = peers(1)
        lab.table = {peer_id: (ADDRESS,)}
        assert await lab.later(RETRY_S) == [(peer_id, (ADDRESS,))]
        assert await lab.later(3 * EVERY_S) == [(peer_id, (ADDRESS,))]
        lab.table = {peer_id: (ADDRESS, OTHER_ADDRESS)}
        assert await lab.later(2 * EVERY_S) == [(peer_id, (ADDRESS, OTHER_ADDRESS))]
        nursery.cancel_scope.cancel()


@jumping
async def test_peers_behind_a_relay_and_the_node_itself_are_left_alone() -> None:
    async with trio.open_nursery() as nursery:
        lab = Lab(nursery)
        [peer_id] = peers(1)
        relayed = parse(f"/ip4/192.0.2.1/tcp/1/p2p/{GATEWAY}/p2p-circuit")
        lab.table = {peer_id: (relayed,), OWN: (ADDRESS,)}
        assert await lab.later(3 * EVERY_S) == []
        nursery.cancel_scope.cancel()


def bucket_of_the_node(count: int) -> list[str]:
    """Return peers that the gateway's table has in one bucket with this node."""
    bucket = bucket_of(OWN, GATEWAY)
    return [peer_id for peer_id in peers(500) if bucket_of(peer_id, GATEWAY) == bucket][:count]


@jumping
async def test_a_node_stays_out_of_a_crowded_table_until_it_has_room() -> None:
    async with trio.open_nursery() as nursery:
        lab = Lab(nursery)
        lab.table = dict.fromkeys(bucket_of_the_node(ROOM), ())
        assert lab.discovery.hides(GATEWAY)
        await lab.later(3 * EVERY_S)
        assert lab.discovery.hides(GATEWAY)
        assert not lab.announced
        lab.table = dict.fromkeys([OWN, *bucket_of_the_node(ROOM - 1)], ())
        await lab.later(2 * EVERY_S)
        assert not lab.discovery.hides(GATEWAY)
        assert lab.announced == 1
        lab.table = dict.fromkeys(bucket_of_the_node(ROOM), ())
        await lab.later(2 * EVERY_S)
        assert not lab.discovery.hides(GATEWAY), "it is in the table"
        nursery.cancel_scope.cancel()


@jumping
async def test_a_node_announces_itself_at_once_to_a_gateway_that_turns_out_to_forward_gossip() -> None:
    async with trio.open_nursery() as nursery:
        lab = Lab(nursery)
        lab.table = dict.fromkeys(bucket_of_the_node(ROOM), ())
        assert lab.discovery.hides(GATEWAY)
        await wait_all_tasks_blocked()
        lab.silent = []
        lab.host.changes.notify()
        await wait_all_tasks_blocked()
        assert lab.announced == 1
        assert not lab.discovery.hides(GATEWAY)
        nursery.cancel_scope.cancel()


@jumping
async def test_few_peers_are_dialled_at_a_time() -> None:
    async with trio.open_nursery() as nursery:
        lab = Lab(nursery)
        lab.table = dict.fromkeys(peers(3 * MAX_DIALS), (ADDRESS,))
        assert len(await lab.later(3 * EVERY_S)) == MAX_DIALS
        lab.answers.set()
        await wait_all_tasks_blocked()
        assert len(lab.dialled) == 2 * MAX_DIALS
        nursery.cancel_scope.cancel()
