"""Nodes join a network and send requests to its members."""

import logging

import pytest
import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.errors import (
    DialError,
    HandshakeError,
    NetworkError,
    PeerUnreachable,
    RemoteRefused,
    RequestTimeout,
    StreamReset,
)
from hypha_network.host import MAX_CONNECTIONS_PER_PEER
from hypha_network.network import open_network
from hypha_network.wire.addresses import AddressError, parse
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, LOOPBACK, direct_address, gateway, member, messages, node, until

pytestmark = pytest.mark.anyio


async def healthy(_: str, request: HealthRequest) -> HealthResponse:
    assert isinstance(request, HealthRequest)
    return HealthResponse(healthy=True)


async def test_a_node_lists_the_addresses_at_which_peers_reach_it() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b", listen_addresses=()) as b:
        (address,) = a.addresses()
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert not address.startswith("/ip4/127.0.0.1/tcp/0/")
        assert address.endswith(a.peer_id)
        assert await b.dial(address) == a.peer_id
        assert b.connected_peers() == [a.peer_id]


async def test_external_addresses_are_listed_next_to_the_listen_addresses() -> None:
    async with node(Pki(), "a", external_addresses=("/dns4/worker.example.org/tcp/4001",)) as a:
        assert f"/dns4/worker.example.org/tcp/4001/p2p/{a.peer_id}" in a.addresses()


async def test_a_node_without_gateways_is_healthy_once_it_listens() -> None:
    async with node(Pki(), "a") as a:
        assert a.status().healthy
        assert a.status().listening


@pytest.mark.parametrize("with_peer_id", [True, False])
async def test_a_node_joins_through_a_gateway_with_and_without_its_peer_id(with_peer_id: bool) -> None:
    pki = Pki()
    async with gateway(pki) as g:
        address = direct_address(g) if with_peer_id else direct_address(g).partition("/p2p/")[0]
        async with node(pki, "a", gateways=(address,)) as a:
            assert not a.status().healthy
            with trio.fail_after(DEADLINE_S):
                await a.wait_ready()
            assert a.status().gateways == (g.peer_id,)
            assert a.status().bootstrapped


async def test_a_gateway_is_reached_by_its_host_name() -> None:
    pki = Pki()
    async with gateway(pki) as g:
        port = direct_address(g).split("/")[4]
        async with node(pki, "a", gateways=(f"/dns4/localhost/tcp/{port}",)) as a:
            with trio.fail_after(DEADLINE_S):
                await a.wait_ready()


async def test_one_of_two_gateways_is_enough() -> None:
    pki = Pki()
    async with gateway(pki) as g:
        async with node(pki, "b") as gone:
            dead = direct_address(gone)
        async with node(pki, "a", gateways=(dead, direct_address(g))) as a:
            with trio.fail_after(DEADLINE_S):
                await a.wait_ready()


async def test_addresses_of_unsupported_transports_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    addresses = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/webrtc-direct")
    async with node(Pki(), "a", listen_addresses=addresses) as a:
        assert len(a.status().listening) == 1
    assert any("/ip4/127.0.0.1/udp/0/webrtc-direct is left out" in text for text in messages(caplog.records))


async def test_having_only_gateways_of_unsupported_transports_is_an_error() -> None:
    with pytest.raises(NetworkError, match="none of the gateway addresses"):
        async with node(Pki(), "a", gateways=("/ip4/127.0.0.1/udp/1/webrtc-direct",)):
            pass


async def test_listening_on_an_address_in_use_raises_an_error_that_names_it() -> None:
    pki = Pki()
    async with node(pki, "a") as a:
        address = direct_address(a).partition("/p2p/")[0]
        with pytest.raises(NetworkError, match=address):
            async with node(pki, "b", listen_addresses=(address,)):
                pass


async def test_a_relayed_listen_address_raises_an_error_that_names_relay_circuit() -> None:
    pki = Pki()
    relay = pki.identity("relay").peer_id
    with pytest.raises(NetworkError, match="relay_circuit"):
        async with node(pki, "a", listen_addresses=(f"/ip4/127.0.0.1/tcp/4001/p2p/{relay}/p2p-circuit",)):
            pass


async def test_a_bad_address_in_the_configuration_is_an_error() -> None:
    with pytest.raises(AddressError, match="nonsense"):
        async with node(Pki(), "a", listen_addresses=("nonsense",)):
            pass


async def test_an_error_of_the_body_is_raised_without_an_exception_group() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with node(Pki(), "a"):
            raise KeyError("mine")


async def test_a_node_of_another_authority_is_refused() -> None:
    async with node(Pki(), "a") as a, node(Pki(), "b") as b:
        with pytest.raises(HandshakeError):
            await b.dial(direct_address(a))
        assert not a.connected_peers()


async def test_a_peer_that_answers_for_another_one_is_refused() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        with pytest.raises(DialError, match=a.peer_id):
            await c.dial(direct_address(a).replace(a.peer_id, b.peer_id))


async def test_a_node_does_not_connect_to_itself() -> None:
    async with node(Pki(), "a") as a:
        with pytest.raises(DialError, match="this node itself"):
            await a.dial(direct_address(a).partition("/p2p/")[0])
        with pytest.raises(PeerUnreachable):
            await a.request(a.peer_id, HEALTH, HealthRequest())


async def test_a_peer_answers_a_request() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        askers = []

        async def answer(peer_id: str, _: HealthRequest) -> HealthResponse:
            askers.append(peer_id)
            return HealthResponse(healthy=False)

        a.handle(HEALTH, answer)
        await b.dial(direct_address(a))
        assert await b.request(a.peer_id, HEALTH, HealthRequest()) == HealthResponse(healthy=False)
        assert askers == [b.peer_id]


async def test_a_peer_never_connected_to_is_found_through_the_gateway() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g) as a, member(pki, "b", g) as b:
        a.handle(HEALTH, healthy)
        response = await b.request(a.peer_id, HEALTH, HealthRequest())
        assert response.healthy


async def test_a_protocol_cannot_be_registered_twice() -> None:
    async with node(Pki(), "a") as a:
        a.handle(HEALTH, healthy)
        with pytest.raises(ValueError, match=r"/hypha-health.* has a handler already"):
            a.handle(HEALTH, healthy)


async def test_a_handler_that_returns_none_refuses_the_request() -> None:
    pki = Pki()

    async def refuse(_: str, __: HealthRequest) -> None:
        return None

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle(HEALTH, refuse)
        await b.dial(direct_address(a))
        with pytest.raises(StreamReset, match=a.peer_id):
            await b.request(a.peer_id, HEALTH, HealthRequest())


async def test_a_protocol_that_the_peer_does_not_speak_is_refused() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        with pytest.raises(RemoteRefused, match="/hypha-health"):
            await b.request(a.peer_id, HEALTH, HealthRequest())


async def test_a_handler_that_fails_affects_only_its_own_request(caplog: pytest.LogCaptureFixture) -> None:
    pki = Pki()
    failed = False

    async def fail_once(_: str, __: HealthRequest) -> HealthResponse:
        nonlocal failed
        if not failed:
            failed = True
            raise RuntimeError("a bug")
        return HealthResponse(healthy=True)

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle(HEALTH, fail_once)
        await b.dial(direct_address(a))
        with pytest.raises(StreamReset):
            await b.request(a.peer_id, HEALTH, HealthRequest())
        assert (await b.request(a.peer_id, HEALTH, HealthRequest())).healthy
    assert sum("RuntimeError: a bug" in text for text in messages(caplog.records)) == 1
    assert not any(record.exc_info for record in caplog.records if record.levelno > logging.DEBUG)


async def test_a_request_without_an_answer_times_out() -> None:
    pki = Pki()

    async def sleep(_: str, __: HealthRequest) -> HealthResponse:
        await trio.sleep_forever()
        raise AssertionError

    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle(HEALTH, sleep)
        await b.dial(direct_address(a))
        with pytest.raises(RequestTimeout, match=r"0\.2 s"):
            await b.request(a.peer_id, HEALTH, HealthRequest(), timeout_s=0.2)


async def test_an_unknown_peer_is_unreachable() -> None:
    pki = Pki()
    stranger = pki.identity("stranger").peer_id
    async with gateway(pki) as g, member(pki, "a", g) as a:
        with pytest.raises(PeerUnreachable, match=stranger):
            await a.request(stranger, HEALTH, HealthRequest())


async def test_closing_a_network_closes_its_connections_and_listeners() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await b.dial(direct_address(a))
        async with open_network(pki.identity("c"), LOOPBACK) as c:
            await c.dial(direct_address(a))
            await until(a, lambda: c.peer_id in a.connected_peers())
            address = direct_address(c)
        await until(a, lambda: c.peer_id not in a.connected_peers())
        with pytest.raises(DialError, match="Connection refused"):
            await a.dial(address)


async def test_concurrent_requests_to_an_unconnected_peer_share_one_connection() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle(HEALTH, healthy)
        b._kademlia.learn(a.peer_id, [parse(direct_address(a))], frozenset())
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(b.request, a.peer_id, HEALTH, HealthRequest())
        assert len(b._host.connections[a.peer_id]) == 1


async def test_a_peer_that_connects_repeatedly_keeps_its_latest_connections() -> None:
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        a.handle(HEALTH, healthy)
        for _ in range(MAX_CONNECTIONS_PER_PEER + 5):
            await b.dial(direct_address(a))
        await until(a, lambda: len(a._host.connections[b.peer_id]) <= MAX_CONNECTIONS_PER_PEER)
        await until(b, lambda: len(b._host.connections[a.peer_id]) <= MAX_CONNECTIONS_PER_PEER)
        assert (await b.request(a.peer_id, HEALTH, HealthRequest())).healthy


async def test_a_peer_is_reached_although_some_of_its_addresses_are_dead() -> None:
    pki = Pki()
    async with node(pki, "gone") as gone:
        dead = direct_address(gone)
    async with node(pki, "a") as a, node(pki, "b") as b, node(pki, "c") as c:
        a.handle(HEALTH, healthy)
        wrong = direct_address(c).replace(c.peer_id, a.peer_id)  # another peer listens there
        known = [parse(address) for address in (dead.replace(gone.peer_id, a.peer_id), wrong, direct_address(a))]
        b._kademlia.learn(a.peer_id, known, frozenset())
        assert (await b.request(a.peer_id, HEALTH, HealthRequest())).healthy


async def test_a_node_counts_the_bytes_and_measures_the_round_trip_of_each_connection() -> None:
    pki = Pki()
    size = 3_000_000
    async with node(pki, "a") as a, node(pki, "b") as b:
        received = trio.Event()

        async def receive(_peer: str, stream: Stream) -> None:
            assert len(await stream.read_to_end(size)) == size
            received.set()

        b.handle_stream("/test", receive)
        await a.dial(direct_address(b))
        stream = await a.open_stream(b.peer_id, "/test")
        await stream.send_all(bytes(size))
        await stream.aclose()
        with trio.fail_after(DEADLINE_S):
            await received.wait()
            while a.connections()[0].round_trip_s is None:  # noqa: ASYNC110 - nothing announces it
                await trio.sleep(0.01)
        assert size <= b.traffic().of("inbound")[a.peer_id] < 1.01 * size + 100_000
        assert size <= a.traffic().of("outbound")[b.peer_id] < 1.01 * size + 100_000
        assert b.traffic().of("inbound") == b.traffic().of("inbound"), "nothing is counted twice"
        (connection,) = a.connections()
        assert (connection.peer_id, connection.inbound, connection.relayed) == (b.peer_id, False, False)
        assert 0 < (connection.round_trip_s or 0) < DEADLINE_S
        before = b.traffic().of("inbound")[a.peer_id]
    assert b.traffic().of("inbound")[a.peer_id] >= before, "the counts outlive the connection"
