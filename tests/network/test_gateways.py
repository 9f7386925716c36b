"""Gateways come and go; nodes find back to them."""

from dataclasses import replace

import pytest
import trio

from hypha_network.network import open_network
from hypha_network.services.gateways import BACKOFF
from support.certs import Pki
from support.networks import DEADLINE_S, LOOPBACK, direct_address, gateway, member, node, run_node, until

pytestmark = pytest.mark.anyio


async def test_a_node_renews_its_reservation_and_records_at_a_gateway_that_restarts() -> None:
    pki = Pki()
    identity = pki.identity("gateway")
    roles = replace(LOOPBACK, kademlia_server=True, relay_server=True)
    async with trio.open_nursery() as nursery:
        first, stop = await nursery.start(run_node, identity, roles)
        address = direct_address(first).partition("/p2p/")[0]
        async with member(pki, "a", first, relay_circuit=True, listen_addresses=()) as a:
            await a.put_record("digits", b"3 slices")
            stop.set()
            await until(a, lambda: not a.status().gateways)
            assert not a.status().healthy
            assert not a.status().reservations
            async with open_network(identity, replace(roles, listen_addresses=(address,))) as second:
                await until(a, lambda: a.status().healthy)
                assert a.status().reservations == (second.peer_id,)
                with trio.fail_after(DEADLINE_S):
                    while await second.get_record("digits") is None:  # noqa: ASYNC110 - nothing tells that it has come
                        await trio.sleep(0.01)


async def test_a_gateway_that_has_not_started_is_dialled_until_it_answers() -> None:
    pki = Pki()
    async with gateway(pki) as g:
        address = direct_address(g)
    async with node(pki, "a", gateways=(address.partition("/p2p/")[0],)) as a:
        await until(a, lambda: not a.status().healthy)
        async with gateway(pki, listen_addresses=(address.partition("/p2p/")[0],)):
            await until(a, lambda: a.status().healthy)


async def test_another_gateway_may_answer_at_an_address_without_peer_id() -> None:
    pki = Pki()
    async with trio.open_nursery() as nursery:
        first, stop = await nursery.start(run_node, pki.identity("first"), replace(LOOPBACK, kademlia_server=True))
        address = direct_address(first).partition("/p2p/")[0]
        async with node(pki, "a", gateways=(address,)) as a:
            await until(a, lambda: a.status().healthy)
            stop.set()
            await until(a, lambda: not a.status().gateways)
            async with gateway(pki, "second", listen_addresses=(address,)) as second:
                await until(a, lambda: a.status().gateways == (second.peer_id,))


def test_the_backoff_of_a_gateway_is_at_most_half_a_minute() -> None:
    assert BACKOFF.max_s == 30
