"""A node learns from its gateways at which address its NAT lets peers in."""

import socket

import pytest
import trio

from hypha_network.errors import NetworkError
from hypha_network.services.observed import agreed, mapped_listener
from hypha_network.wire.addresses import local_port_for, parse
from hypha_network.wire.tcp import Tcp
from hypha_network.wire.transport import RawConnection
from support.certs import Pki
from support.networks import direct_address, gateway, node, until

pytestmark = pytest.mark.anyio

MAPPED, OTHER = parse("/ip4/203.0.113.1/tcp/4001"), parse("/ip4/203.0.113.1/tcp/5555")


def test_what_a_peer_observes_of_the_listening_port_is_used() -> None:
    assert mapped_listener(OTHER, local_port=4001, listening_port=4001) == OTHER


def test_a_port_that_the_nat_keeps_tells_the_address_of_the_listening_port() -> None:
    assert mapped_listener(OTHER, local_port=5555, listening_port=4001) == MAPPED


@pytest.mark.parametrize("local_port", [40000, None])
def test_a_port_that_the_nat_changes_tells_nothing_of_another_port(local_port: int | None) -> None:
    assert mapped_listener(OTHER, local_port, listening_port=4001) is None


def test_several_observers_must_agree_and_a_single_one_is_believed() -> None:
    assert agreed({}) == []
    assert agreed({"a": MAPPED}) == [MAPPED]
    assert agreed({"a": MAPPED, "b": OTHER}) == []
    assert agreed({"a": MAPPED, "b": OTHER, "c": MAPPED}) == [MAPPED]


@pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 4001), ("127.0.0.1", 4002), ("2001:db8::1", None)])
def test_a_node_connects_from_the_port_of_a_listener_that_can_reach_the_host(host: str, port: int | None) -> None:
    listening = [
        parse("/ip4/0.0.0.0/udp/4003/quic-v1"),
        parse("/ip4/127.0.0.1/tcp/4002"),
        parse("/ip4/0.0.0.0/tcp/4001"),
    ]
    assert local_port_for(host, listening) == port


async def test_a_node_that_listens_at_one_address_connects_from_the_one_that_leads_to_the_host() -> None:
    pki = Pki()
    elsewhere = ("/ip4/127.0.0.2/tcp/0",)
    async with gateway(pki) as g, node(pki, "a", gateways=(direct_address(g),), listen_addresses=elsewhere) as a:
        await until(a, lambda: bool(a.connected_peers()))
        (inbound,) = g._host.connections[a.peer_id]
        assert (inbound.address.host, inbound.address.port) == ("127.0.0.1", a._host.bound[0].port)


async def test_a_gateway_observes_the_listening_port_of_a_node_and_the_node_learns_it() -> None:
    pki = Pki()
    async with gateway(pki) as g, node(pki, "a", gateways=(direct_address(g),)) as a:
        await until(a, lambda: bool(a._observed.addresses()))
        assert a._observed.addresses() == a._host.listen_addresses
        (inbound,) = g._host.connections[a.peer_id]
        assert inbound.address.endpoint in a._host.listen_addresses


async def test_peers_that_the_operator_did_not_choose_are_no_observers() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        (connection,) = b._host.connections[a.peer_id]
        await until(b, lambda: connection.observed is not None)
        assert not b._observed.addresses()


async def test_no_other_listener_takes_the_port_of_a_node() -> None:
    async def accept(_: RawConnection) -> None:
        """Close at once."""

    async with trio.open_nursery() as nursery:
        (address,) = await Tcp().listen(parse("/ip4/127.0.0.1/tcp/0"), accept, lambda: None, nursery)
        with pytest.raises(NetworkError, match="cannot listen"):
            await Tcp().listen(address, accept, lambda: None, nursery)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((address.host, address.port))
        nursery.cancel_scope.cancel()


async def test_a_second_connection_to_the_same_place_takes_another_port() -> None:
    pki = Pki()
    async with gateway(pki) as g, node(pki, "a", gateways=(direct_address(g),)) as a:
        await until(a, lambda: bool(a.connected_peers()))
        await a.dial(direct_address(g))
        ports = {connection.local_port for connection in a._host.connections[g.peer_id]}
        assert len(ports) == 2
        assert a._host.bound[0].port in ports


async def test_a_node_listens_again_at_once_at_the_port_from_which_it_was_connected() -> None:
    pki = Pki()
    async with gateway(pki) as g:
        port = 0
        for _ in range(3):
            listen = (f"/ip4/127.0.0.1/tcp/{port}",)
            async with node(pki, "a", gateways=(direct_address(g),), listen_addresses=listen) as a:
                await until(a, lambda a=a: bool(a._observed.addresses()))  # type: ignore[misc]
                assert a._observed.addresses() == a._host.listen_addresses
                port = a._host.bound[0].port
