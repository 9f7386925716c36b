"""A real node makes offers to aggregate only while trainers can send it their updates."""

import signal

import pytest
import trio

from support.certs import Pki
from support.networks import DEADLINE_S, gateway
from support.node_process import CAPACITY, stage, wanted

pytestmark = pytest.mark.anyio


async def test_a_node_that_listens_at_a_usable_address_aggregates() -> None:
    pki = Pki()
    async with gateway(pki) as entry, stage(pki, entry, "run", class_="aggregate") as s:
        await s.scheduler.lease(class_="aggregate")
        await s.node.logged("peers reach this node: directly")


async def test_a_node_behind_a_limited_relay_aggregates_only_if_its_operator_says_so() -> None:
    pki, offer = Pki(), {"aggregate_needs_reach": True}
    hidden = {"listen_addresses": [], "relay_circuit": True, "class_": "aggregate", "offer": offer}
    async with gateway(pki) as entry, stage(pki, entry, "run", **hidden) as s:
        with trio.fail_after(DEADLINE_S):
            await s.node.logged("others through gateways for control messages alone")
            request = await s.scheduler.advertise(wanted(CAPACITY, "aggregate"))
            await s.node.logged(f"request {request.id} gets no offer: trainers could not send it their updates")
            text = s.node.config.read_text()
            s.node.config.write_text(text.replace('"aggregate_needs_reach" = true', '"aggregate_needs_reach" = false'))
            s.node.signal(signal.SIGHUP)
            await s.node.logged("reloaded: offer.aggregate_needs_reach")
            await s.scheduler.lease(class_="aggregate")
