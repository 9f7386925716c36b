"""A node knows how peers reach it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
import trio
from trio.testing import MockClock

from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_contracts.reach import Reach
from hypha_network.changes import Changes
from hypha_network.services import reach
from hypha_network.services.reach import SETTLES_S, ReachWatch, counts_at_once, judge
from support.certs import Pki
from support.networks import LOOPBACK, direct_address, gateway, member, node, observe, run_node, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worse reach counts at once."""
    monkeypatch.setattr(reach, "SETTLES_S", 0.0)


@pytest.mark.parametrize(
    ("public", "observed", "predictable", "reserved", "relays_bulk", "found"),
    [
        (True, False, False, False, False, Reach.PUBLIC),
        (False, False, False, True, True, None),
        (False, True, True, True, True, Reach.PUNCHABLE),
        (False, True, True, False, False, Reach.NONE),
        (False, True, False, True, True, Reach.BULK_RELAY),
        (False, True, False, True, False, Reach.LIMITED_RELAY),
    ],
)
def test_a_node_knows_how_peers_reach_it_once_a_gateway_has_observed_it(
    public: bool, observed: bool, predictable: bool, reserved: bool, relays_bulk: bool, found: Reach | None
) -> None:
    judged = judge(
        public=public, observed=observed, predictable=predictable, reserved=reserved, relays_bulk=relays_bulk
    )
    assert judged is found


@pytest.mark.parametrize(
    ("before", "found", "at_once"),
    [
        (None, Reach.PUBLIC, True),
        (None, Reach.BULK_RELAY, True),
        (None, Reach.LIMITED_RELAY, False),
        (None, Reach.NONE, False),
        (Reach.NONE, Reach.LIMITED_RELAY, False),
        (Reach.LIMITED_RELAY, Reach.PUNCHABLE, True),
        (Reach.PUBLIC, Reach.PUNCHABLE, False),
        (Reach.PUBLIC, None, False),
    ],
)
def test_a_better_reach_counts_at_once_and_a_worse_one_once_it_lasts(
    before: Reach | None, found: Reach | None, at_once: bool
) -> None:
    assert counts_at_once(found, before) is at_once


class TestWatch:
    """With a clock that jumps."""

    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, object]]:
        return "trio", {"clock": MockClock(autojump_threshold=0)}

    async def test_a_start_in_steps_is_reported_as_its_result(self) -> None:
        async with watching() as node:
            for found in (Reach.NONE, Reach.LIMITED_RELAY, Reach.PUNCHABLE):
                await node.become(found)
                await trio.sleep(SETTLES_S / 4)
            await node.become(Reach.LIMITED_RELAY)
            await trio.sleep(SETTLES_S / 2)
            await node.become(Reach.PUNCHABLE)
            await trio.sleep(10 * SETTLES_S)
        assert node.reported == [Reach.PUNCHABLE]

    async def test_a_reach_that_stays_worse_is_reported(self) -> None:
        async with watching() as node:
            for found in (Reach.PUBLIC, Reach.LIMITED_RELAY, None):
                await node.become(found)
                await trio.sleep(2 * SETTLES_S)
        assert node.reported == [Reach.PUBLIC, Reach.LIMITED_RELAY, None]


@dataclass
class Watched:
    """A node whose reach is as a test says."""

    changes: Changes = field(default_factory=Changes)
    found: Reach | None = None
    reported: list[Reach | None] = field(default_factory=list)

    async def become(self, found: Reach | None) -> None:
        self.found = found
        self.changes.notify()
        await trio.lowlevel.checkpoint()

    async def report(self, found: Reach | None) -> None:
        self.reported.append(found)


@asynccontextmanager
async def watching() -> AsyncIterator[Watched]:
    node = Watched()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ReachWatch(node.changes, lambda: node.found, node.report).run)
        yield node
        nursery.cancel_scope.cancel()


async def test_a_node_without_a_nat_is_public_over_tcp_and_over_quic() -> None:
    pki = Pki()
    for listen in ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"):
        async with (
            gateway(pki, listen_addresses=(listen,)) as g,
            member(pki, "a", g, listen_addresses=(listen,), relay_circuit=True) as a,
        ):
            await until(a, lambda a=a: a.reach is Reach.PUBLIC)  # type: ignore[misc]


@pytest.mark.usefixtures("at_once")
async def test_an_address_that_peers_ignore_makes_no_node_public() -> None:
    pki = Pki()
    async with gateway(pki) as g:
        for external in ((), ("/ip4/10.1.2.3/tcp/4001",)):
            config = {"relay_circuit": True, "exclude_cidr": RESERVED_CIDRS, "external_addresses": external}
            async with member(pki, "a", g, **config) as a:
                await until(a, lambda a=a: a.reach is Reach.LIMITED_RELAY)  # type: ignore[misc]


@pytest.mark.usefixtures("at_once")
async def test_a_node_does_not_know_its_reach_before_and_after_its_gateways() -> None:
    pki = Pki()
    async with trio.open_nursery() as nursery:
        roles = replace(LOOPBACK, kademlia_server=True, relay_server=True)
        g, stop = await nursery.start(run_node, pki.identity("gateway"), roles)
        async with node(pki, "a", gateways=(direct_address(g),), listen_addresses=(), relay_circuit=True) as a:
            assert a.reach is None
            await until(a, lambda: a.reach is Reach.LIMITED_RELAY)
            stop.set()
            await until(a, lambda: a.reach is None)


@pytest.mark.usefixtures("at_once")
async def test_the_reach_follows_what_the_gateways_observe() -> None:
    pki = Pki()
    everywhere = ("/ip4/0.0.0.0/tcp/0",)
    async with gateway(pki) as g, member(pki, "a", g, listen_addresses=everywhere, relay_circuit=True) as a:
        await until(a, lambda: a.reach is Reach.PUBLIC)
        observe(a, f"/ip4/203.0.113.1/tcp/{a._host.bound[0].port}")
        await until(a, lambda: a.reach is Reach.PUNCHABLE)
        observe(a, "/ip4/203.0.113.1/tcp/5555")
        await until(a, lambda: a.reach is Reach.LIMITED_RELAY)
