"""Nodes serve the DHT beside the gateways while peers can connect to them directly."""

from dataclasses import replace

import pytest
import trio
import trio.testing
from libp2p.identity.identify.pb.identify_pb2 import Identify

from hypha_contracts.addresses import RESERVED_CIDRS
from hypha_contracts.reach import Reach
from hypha_network.network import Network
from hypha_network.services import kademlia, reach
from hypha_network.services.identify import IDENTIFY
from hypha_network.services.kademlia import PROTOCOL
from hypha_network.services.kademlia_lookup import key_of, peer_key
from hypha_network.services.kademlia_messages import Record
from hypha_network.wire.multistream import read_prefixed
from support.certs import Pki
from support.networks import DEADLINE_S, LOOPBACK, gateway, member, observe, run_node, until

pytestmark = pytest.mark.anyio

EVERYWHERE = ("/ip4/0.0.0.0/tcp/0",)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "SETTLES_S", 0.0)


async def protocols_of(peer: Network, asker: Network) -> list[str]:
    """Return the protocols that a node announces to a peer."""
    with trio.fail_after(DEADLINE_S):
        stream = await asker.open_stream(peer.peer_id, IDENTIFY)
        return list(Identify.FromString(await read_prefixed(stream, 1 << 16)).protocols)


def knows_as_server(network: Network, peer: Network) -> bool:
    known = network._kademlia._table.get(peer.peer_id)
    return known is not None and known.serves


async def test_a_worker_with_a_relay_slot_serves_the_dht_while_peers_connect_to_it_directly() -> None:
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "worker", g, listen_addresses=EVERYWHERE, relay_circuit=True) as worker,
        member(pki, "publisher", g, listen_addresses=()) as publisher,
    ):
        await until(g, lambda: knows_as_server(g, worker))
        assert PROTOCOL in await protocols_of(worker, g)
        await until(publisher, lambda: knows_as_server(publisher, worker))
        await publisher.put_record("digits", b"3 slices")
        assert worker._kademlia._stored(b"digits") is not None
        observe(worker, f"/ip4/203.0.113.1/tcp/{worker._host.bound[0].port}")
        await until(g, lambda: not knows_as_server(g, worker))
        assert worker.reach is Reach.PUNCHABLE
        assert PROTOCOL not in await protocols_of(worker, g)
        observe(worker, f"/ip4/127.0.0.1/tcp/{worker._host.bound[0].port}")
        await until(g, lambda: knows_as_server(g, worker))


@pytest.mark.parametrize(
    "config",
    [
        {"listen_addresses": (), "relay_circuit": True},
        {"exclude_cidr": RESERVED_CIDRS, "relay_circuit": True},
        {"relay_circuit": False},
    ],
    ids=["listens nowhere", "at an address that peers ignore", "wants no peers"],
)
async def test_a_worker_to_which_peers_do_not_connect_directly_does_not_serve(config: dict[str, object]) -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "worker", g, **config) as worker:
        await until(worker, lambda: worker.reach is not None)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert PROTOCOL not in await protocols_of(worker, g)


async def test_records_are_found_after_the_only_gateway_has_gone() -> None:
    pki = Pki()
    async with trio.open_nursery() as nursery:
        roles = replace(LOOPBACK, kademlia_server=True, relay_server=True)
        g, stop = await nursery.start(run_node, pki.identity("gateway"), roles)
        async with (
            member(pki, "worker", g, relay_circuit=True) as worker,
            member(pki, "reader", g, listen_addresses=()) as reader,
        ):
            await until(g, lambda: knows_as_server(g, worker))
            async with member(pki, "publisher", g, listen_addresses=()) as publisher:
                await until(publisher, lambda: knows_as_server(publisher, worker))
                await publisher.put_record("digits", b"3 slices")
                expected = Record(b"3 slices", publisher.peer_id)
            await until(reader, lambda: knows_as_server(reader, worker))
            stop.set()
            await until(worker, lambda: worker.reach is None)
            assert await reader.get_record("digits") == expected


async def test_the_gateways_store_each_record_however_many_others_are_closer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kademlia, "K", 1)
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "worker", g, relay_circuit=True) as worker,
        member(pki, "publisher", g, listen_addresses=()) as publisher,
    ):
        await until(publisher, lambda: knows_as_server(publisher, worker))

        def distance(peer: Network, key: str) -> int:
            return peer_key(peer.peer_id) ^ key_of(key.encode())

        near_worker = next(k for k in map(str, range(100)) if distance(worker, k) < distance(g, k))
        await publisher.put_record(near_worker, b"x")
        for server in (worker, g):
            assert server._kademlia._stored(near_worker.encode()) is not None
