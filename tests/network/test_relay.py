"""Nodes are reached through gateways."""

from types import ModuleType

import pytest
import trio
from libp2p.relay.circuit_v2.pb import circuit_pb2
from trio.testing import MockClock

from hypha_contracts.backoff import Backoff
from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_messages.types import peer_id_to_bytes
from hypha_network import host as host_module
from hypha_network.connection import Connection
from hypha_network.errors import DialError, NetworkError, OnlyRelayed, PeerUnreachable
from hypha_network.fairness import FairPlaces
from hypha_network.network import Network
from hypha_network.pauses import MAX_PAUSES, Pauses
from hypha_network.services import relay, relay_server
from hypha_network.services.kademlia import Kademlia
from hypha_network.services.relay import MAX_REFRESH_S, MIN_REFRESH_S, refresh_in_s
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, node, until

pytestmark = pytest.mark.anyio


async def healthy(_: str, __: HealthRequest) -> HealthResponse:
    return HealthResponse(healthy=True)


async def look_at_nobody(_: Kademlia) -> None:
    await trio.sleep_forever()


def relayed(network: Network, peer: Network) -> bool:
    connection = network._host.connection(peer.peer_id)
    assert connection is not None
    return connection.relayed


async def test_a_node_that_listens_nowhere_is_reached_through_its_gateway() -> None:
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        member(pki, "a", g, listen_addresses=()) as a,
    ):
        hidden.handle(HEALTH, healthy)
        assert hidden.status().reservations == (g.peer_id,)
        assert (await a.request(hidden.peer_id, HEALTH, HealthRequest())).healthy
        assert relayed(a, hidden)
        assert relayed(hidden, a)


async def test_the_address_through_the_gateway_can_be_dialled() -> None:
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        node(pki, "a") as a,
    ):
        (address,) = hidden.addresses()
        assert address == f"{direct_address(g)}/p2p-circuit/p2p/{hidden.peer_id}"
        assert await a.dial(address) == hidden.peer_id


async def test_a_node_with_relay_circuit_is_not_healthy_before_its_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 0)
    pki = Pki()
    async with gateway(pki) as g, node(pki, "a", gateways=(direct_address(g),), relay_circuit=True) as a:
        await until(a, lambda: bool(a.status().gateways) and a.status().bootstrapped)
        assert not a.status().healthy


async def test_a_node_without_a_reservation_is_not_reached_through_the_gateway() -> None:
    pki = Pki()
    async with gateway(pki) as g, member(pki, "hidden", g, listen_addresses=()) as hidden, member(pki, "a", g) as a:
        with pytest.raises(PeerUnreachable, match="status 204"):
            await a.request(hidden.peer_id, HEALTH, HealthRequest())


async def test_a_node_without_relay_server_does_not_relay() -> None:
    pki = Pki()
    async with node(pki, "g") as g, node(pki, "a") as a, node(pki, "b") as b:
        with pytest.raises(NetworkError, match="hop"):
            await a.dial(f"{direct_address(g)}/p2p-circuit/p2p/{b.peer_id}")


async def test_a_relay_that_connects_to_another_peer_is_detected() -> None:
    """The circuit is secured end to end, so the dialling node notices a relay that connects to another peer."""
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        member(pki, "other", g, listen_addresses=(), relay_circuit=True) as other,
        node(pki, "a") as a,
    ):
        server = g._host._handlers[relay.HOP].__self__  # type: ignore[attr-defined]
        server._reservations[hidden.peer_id] = server._reservations[other.peer_id]
        with pytest.raises(DialError, match=other.peer_id):
            await a.dial(hidden.addresses()[0])


async def test_lookups_and_records_cost_no_circuits() -> None:
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        member(pki, "other", g, listen_addresses=(), relay_circuit=True) as other,
    ):
        hidden.handle(HEALTH, healthy)
        await until(g, lambda: all(g._kademlia.addresses_of(network.peer_id) for network in (hidden, other)))
        for _ in range(3):
            await other._kademlia._lookup(peer_id_to_bytes(other.peer_id))
            await other.put_record("digits", b"x")
        assert other.connected_peers() == [g.peer_id]
        assert (await other.request(hidden.peer_id, HEALTH, HealthRequest())).healthy


async def test_a_relayed_connection_is_closed_once_nothing_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CHECK_S", 0.01)
    monkeypatch.setattr(relay, "IDLE_S", 0.05)
    pki = Pki()

    async def hold(_: str, stream: Stream) -> None:
        await stream.read_to_end(1)

    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        member(pki, "a", g, listen_addresses=()) as a,
    ):
        hidden.handle_stream("/hold", hold)
        await a.dial(hidden.addresses()[0])
        used = await a._host.open_stream(hidden.peer_id, ["/hold"])
        with trio.move_on_after(10 * relay.IDLE_S):
            await a.wait_until(lambda: hidden.peer_id not in a.connected_peers())
            raise AssertionError("the connection was closed while a stream used it")
        await used.aclose()
        await until(a, lambda: hidden.peer_id not in a.connected_peers())
        await until(hidden, lambda: a.peer_id not in hidden.connected_peers())


async def test_a_relayed_connection_beside_a_direct_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "CHECK_S", 0.01)
    monkeypatch.setattr(relay, "BESIDE_DIRECT_S", 0.01)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "a", g, relay_circuit=True) as a, node(pki, "b") as b:
        await b.dial(next(address for address in a.addresses() if "p2p-circuit" in address))
        await b.dial(direct_address(a))
        for network, peer in ((a, b), (b, a)):
            held = network._host.connections[peer.peer_id]
            await until(network, lambda held=held: not any(c.relayed for c in held))  # type: ignore[misc]
            assert held


@pytest.mark.parametrize("status", [relay.RESOURCE_LIMIT_EXCEEDED, relay.NO_RESERVATION])
async def test_a_relay_that_refuses_a_circuit_is_not_asked_again_at_once(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        node(pki, "a") as a,
    ):
        asked = 0

        async def refuse(_: Connection, stream: Stream) -> None:
            nonlocal asked
            asked += 1
            await relay.receive(stream, circuit_pb2.HopMessage)
            await relay.send(stream, relay_server._status(status))

        serve = g._host._handlers[relay.HOP]
        g._host._handlers[relay.HOP] = refuse
        (address,) = hidden.addresses()
        with pytest.raises(DialError, match=f"status {status}"):
            await a.dial(address)
        for _ in range(5):
            with pytest.raises(DialError, match="asked again in"):
                await a.dial(address)
        assert asked == 1
        g._host._handlers[relay.HOP] = serve
        monkeypatch.setattr(a._relays._refusals, "wait_s", lambda *_: 0.0)
        assert await a.dial(address) == hidden.peer_id


@pytest.mark.parametrize("limited", [relay, relay_server], ids=["at the node", "at the gateway"])
async def test_a_peer_has_a_limited_number_of_circuits_to_a_node(
    limited: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_INBOUND_CIRCUITS_PER_SOURCE", 1000)
    monkeypatch.setattr(relay_server, "MAX_CIRCUITS_PER_SOURCE", 1000)
    name = "MAX_INBOUND_CIRCUITS_PER_SOURCE" if limited is relay else "MAX_CIRCUITS_PER_SOURCE"
    monkeypatch.setattr(limited, name, 3)
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        member(pki, "a", g) as a,
    ):
        circuits = [await circuit(a, g, hidden) for _ in range(5)]
        with trio.fail_after(DEADLINE_S):
            for ended in circuits[:2]:
                while await received(ended):
                    pass
            held = hidden._relays._circuits[g.peer_id]
            while held.held_by(a.peer_id) != 3:  # noqa: ASYNC110 - the node may hear of it later than the source
                await trio.sleep(0.01)


async def circuit(source: Network, through: Network, target: Network) -> Stream:
    """Open a circuit and leave it silent."""
    connection = source._host.connection(through.peer_id)
    assert connection is not None
    stream = await connection.open([relay.HOP])
    peer = circuit_pb2.PeerId(id=peer_id_to_bytes(target.peer_id))
    await relay.send(stream, circuit_pb2.HopMessage(type=circuit_pb2.HopMessage.CONNECT, peer=peer))
    assert (await relay.receive(stream, circuit_pb2.HopMessage)).status == relay.OK
    return stream


async def received(stream: Stream) -> bytes:
    """Return the next bytes, or none if the circuit has ended."""
    try:
        return bytes(await stream.receive_some())
    except NetworkError:
        return b""


async def test_a_circuit_ends_at_its_limit_of_bytes() -> None:
    pki = Pki()

    async def swallow(_: str, stream: Stream) -> None:
        while await stream.receive_some():
            pass

    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        member(pki, "a", g, listen_addresses=()) as a,
    ):
        hidden.handle_stream("/swallow", swallow)
        stream = await a._host.open_stream(hidden.peer_id, ["/swallow"])
        await stream.send_all(bytes(relay_server.CIRCUIT_BYTES))
        with trio.fail_after(DEADLINE_S), pytest.raises(NetworkError):
            await stream.receive_some()


async def test_a_stream_prefers_a_direct_connection_over_an_existing_relayed_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pki = Pki()

    async def greet(_: str, stream: Stream) -> None:
        await stream.send_all(b"hello")

    async with gateway(pki) as g, member(pki, "a", g, relay_circuit=True) as a:
        monkeypatch.setattr(Kademlia, "run", look_at_nobody)  # else they find each other before they are asked to
        async with node(pki, "b") as b:
            await b.dial(next(address for address in a.addresses() if "p2p-circuit" in address))
            await until(b, lambda: bool(b._kademlia.addresses_of(a.peer_id)))
            assert relayed(b, a)
            a.handle_stream("/greet", greet)
            stream = await b.open_stream(a.peer_id, "/greet")
            with trio.fail_after(DEADLINE_S):
                assert await stream.receive_some() == b"hello"
            assert not relayed(b, a)


async def test_bulk_data_is_refused_at_once_where_only_a_relay_leads_and_requests_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_module, "DIRECT_TIMEOUT_S", 0.2)
    pki = Pki()
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"/ip4/127.0.0.1/tcp/{silent.socket.getsockname()[1]}"
    async with (
        silent,
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), external_addresses=(address,), relay_circuit=True) as hidden,
        node(pki, "a", gateways=(direct_address(g),), listen_addresses=()) as a,
    ):
        hidden.handle(HEALTH, healthy)
        await a.dial(next(address for address in hidden.addresses() if "p2p-circuit" in address))
        for _ in range(2):
            with trio.fail_after(DEADLINE_S), pytest.raises(OnlyRelayed, match=f"only the relay {g.peer_id} leads"):
                await a.open_stream(hidden.peer_id, "/greet")
        assert (await a.request(hidden.peer_id, HEALTH, HealthRequest())).healthy
        assert relayed(a, hidden)


async def test_a_reservation_is_renewed_for_as_long_as_the_connection_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MIN_REFRESH_S", 0.01)
    monkeypatch.setattr(relay_server, "RESERVATION_S", 0)
    pki = Pki()
    asked, enough = 0, trio.Event()
    async with gateway(pki) as g:
        serve = g._host._handlers[relay.HOP]

        async def count(connection: Connection, stream: Stream) -> None:
            nonlocal asked
            await serve(connection, stream)
            asked += 1
            if asked == 5:
                enough.set()

        g._host._handlers[relay.HOP] = count
        async with member(pki, "a", g, relay_circuit=True):
            with trio.fail_after(DEADLINE_S):
                await enough.wait()


class TestRefusals:
    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, object]]:
        return "trio", {"clock": MockClock(rate=0)}

    async def test_the_pauses_after_refusals_grow_and_end_with_a_circuit(self, anyio_backend: object) -> None:
        clock = anyio_backend[1]["clock"]  # type: ignore[index]
        refusals = Pauses(relay.REFUSED)
        waits = []
        for _ in range(10):
            refusals.add("relay", "target")
            waits.append(refusals.wait_s("relay", "target"))
            clock.jump(waits[-1])
            assert refusals.wait_s("relay", "target") <= 0
        assert 0 < waits[0] <= relay.REFUSED.first_s < waits[-1] <= relay.REFUSED.max_s
        assert refusals.wait_s("relay") <= 0
        refusals.remove("relay", "target")
        refusals.add("relay", "target")
        assert refusals.wait_s("relay", "target") <= relay.REFUSED.first_s

    async def test_a_limited_number_of_refusals_is_kept(self) -> None:
        refusals = Pauses(relay.REFUSED)
        for number in range(MAX_PAUSES + 10):
            refusals.add("relay", str(number))
        assert len(refusals._pauses) == MAX_PAUSES
        assert refusals.wait_s("relay", "0") <= 0 < refusals.wait_s("relay", str(number))


def circuits_of(network: Network, protocol: str) -> FairPlaces:
    """The circuits that a gateway relays (HOP), or those to a node through its only gateway (STOP)."""
    held = network._host._handlers[protocol].__self__._circuits  # type: ignore[attr-defined]
    return held if protocol == relay.HOP else next(iter(held.values()))


async def test_a_relay_grants_a_limited_number_of_reservations_and_renews_those(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 1)
    pki = Pki()
    async with gateway(pki) as g, member(pki, "first", g, relay_circuit=True) as first, node(pki, "late") as late:
        await late.dial(direct_address(g))
        server = g._host._handlers[relay.HOP].__self__  # type: ignore[attr-defined]
        for network, status in ((late, relay.RESOURCE_LIMIT_EXCEEDED), (first, relay.OK)):
            await until(g, lambda peer=network.peer_id: peer in g.connected_peers())  # type: ignore[misc]
            assert server._reserve(g._host.connections[network.peer_id][0]).status == status
        assert list(server._reservations) == [first.peer_id]


@pytest.mark.parametrize(
    ("module", "limit", "protocol"),
    [
        (relay_server, "MAX_CIRCUITS_PER_SOURCE", relay.HOP),
        (relay, "MAX_INBOUND_CIRCUITS_PER_SOURCE", relay.STOP),
        (relay_server, "MAX_CIRCUITS", relay.HOP),
        (relay, "MAX_INBOUND_CIRCUITS", relay.STOP),
    ],
)
async def test_a_peer_with_many_circuits_loses_its_oldest_and_nobody_else_does(
    module: ModuleType, limit: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, limit, 3)
    pki = Pki()
    async with (
        gateway(pki) as g,
        member(pki, "hidden", g, listen_addresses=(), relay_circuit=True) as hidden,
        node(pki, "honest", listen_addresses=()) as honest,
        node(pki, "greedy", listen_addresses=()) as greedy,
    ):
        hidden.handle(HEALTH, healthy)
        (address,) = hidden.addresses()
        await honest.dial(address)
        for _ in range(6):
            await greedy.dial(address)
            await until(hidden, lambda: greedy.peer_id in hidden.connected_peers())
        circuits = circuits_of(g if protocol == relay.HOP else hidden, protocol)
        assert circuits.held_by(greedy.peer_id) <= 3
        assert circuits.held_by(honest.peer_id) >= 1
        assert (await honest.request(hidden.peer_id, HEALTH, HealthRequest())).healthy


@pytest.mark.parametrize(
    ("left_s", "earliest_s", "latest_s"),
    [
        (3600, 2340, 2700),
        (365 * 86400, MAX_REFRESH_S, MAX_REFRESH_S),
        (0, MIN_REFRESH_S, MIN_REFRESH_S),
        (-100, MIN_REFRESH_S, MIN_REFRESH_S),
    ],
)
def test_a_reservation_is_renewed_after_three_quarters_of_its_term_at_different_times(
    left_s: float, earliest_s: float, latest_s: float
) -> None:
    renewals = {refresh_in_s(expires=1e9 + left_s, now=1e9) for _ in range(100)}
    assert all(earliest_s <= renewal <= latest_s for renewal in renewals)
    assert len(renewals) > 1 or earliest_s == latest_s


async def test_a_slot_is_asked_for_until_a_relay_grants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "RETRIES", Backoff(first_s=0.01, max_s=0.01))
    monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 0)
    pki = Pki()
    async with gateway(pki) as g, node(pki, "a", gateways=(direct_address(g),), relay_circuit=True) as a:
        await until(a, lambda: bool(a.status().gateways) and a.status().bootstrapped)
        assert not a.status().healthy
        monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 1)
        await until(a, lambda: a.status().healthy)


def test_a_relay_that_grants_no_slot_is_asked_at_longer_and_longer_pauses() -> None:
    pauses = relay.RETRIES.pauses()
    first, *_, last = (next(pauses) for _ in range(20))
    assert first <= 10
    assert 300 <= last <= 600


async def test_a_node_with_external_addresses_is_healthy_without_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_server, "MAX_RESERVATIONS", 0)
    pki = Pki()
    external = ("/dns4/worker.example.org/tcp/4001",)
    async with gateway(pki) as g, member(pki, "a", g, relay_circuit=True, external_addresses=external) as a:
        assert not a.status().reservations
