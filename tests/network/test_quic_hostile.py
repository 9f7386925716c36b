"""Peers over QUIC that this node refuses, and datagrams that cost it little: the same rules as over TCP."""

import secrets

import pytest
import trio
from qh3._hazmat import pull_quic_header
from qh3.quic import events
from qh3.quic.packet import QuicPacketType

from hypha_network.errors import HandshakeError
from hypha_network.identity import Identity
from hypha_network.network import NetworkConfig, open_network
from hypha_network.services.identify import ping
from hypha_network.wire import quic_connection
from hypha_network.wire.addresses import parse
from hypha_network.wire.quic_connection import QuicConnection
from hypha_network.wire.retry_tokens import VALID_S, RetryTokens
from hypha_network.wire.udp import MAX_WAITING_UNAUTHENTICATED, UdpPath
from support.certs import Pki, identity_of
from support.networks import DEADLINE_S, direct_address, node, until
from support.quic_peer import garbage, quic_peer

pytestmark = pytest.mark.anyio
QUIC = ("/ip4/127.0.0.1/udp/0/quic-v1",)
CONFIG = NetworkConfig(listen_addresses=QUIC, exclude_cidr=())
REMOTE = ("203.0.113.1", 4001)


async def refusal_between(dialler: Identity, acceptor: Identity) -> str:
    """Let one node dial another over QUIC; return why that failed."""
    async with open_network(acceptor, CONFIG) as listening, open_network(dialler, CONFIG) as dialling:
        with trio.fail_after(DEADLINE_S), pytest.raises(HandshakeError) as refused:
            await dialling.dial(direct_address(listening))
        assert not listening.connected_peers()
        return str(refused.value)


async def test_a_peer_of_another_network_is_refused_by_the_dialler() -> None:
    reason = await refusal_between(Pki().identity("a"), Pki().identity("b"))
    assert "unable to get local issuer certificate" in reason


async def test_a_peer_whose_authority_only_the_dialler_trusts_learns_that_it_is_refused() -> None:
    ours, theirs = Pki(), Pki()
    both = ours.node("a").trust_pem + theirs.node("b").trust_pem
    reason = await refusal_between(identity_of(ours.node("a"), trust=both), theirs.identity("b"))
    assert "does not accept our certificate" in reason or "does not lead to our certificate" in reason


async def test_a_revoked_server_is_refused() -> None:
    pki = Pki()
    revoked = pki.node("revoked")
    crls = pki.crls(revoked)
    assert "was revoked by" in await refusal_between(pki.identity("a", crls), identity_of(revoked))


async def test_a_revoked_client_is_refused_and_learns_it() -> None:
    pki = Pki()
    revoked = pki.node("revoked")
    reason = await refusal_between(identity_of(revoked), pki.identity("a", pki.crls(revoked)))
    assert "does not accept our certificate" in reason


async def test_a_client_without_a_certificate_is_refused() -> None:
    async with node(Pki(), "a", listen_addresses=QUIC) as a, quic_peer(parse(direct_address(a))) as peer:
        with trio.fail_after(DEADLINE_S):
            await peer.shake_hands()
        (end,) = [event for event in peer.events if isinstance(event, events.ConnectionTerminated)]
        assert end.error_code == 0x100 + 116  # the alert certificate_required
        assert not a.connected_peers()


async def test_replacing_the_identity_closes_the_connections_of_a_peer_that_was_revoked() -> None:
    pki = Pki()
    peer = pki.node("peer")
    async with open_network(pki.identity("a"), CONFIG) as a, open_network(identity_of(peer), CONFIG) as b:
        with trio.fail_after(DEADLINE_S):
            await b.dial(direct_address(a))
            await until(a, lambda: a.connected_peers() == [b.peer_id])
            fresh = Identity.from_pem(peer.cert_pem, peer.key_pem, peer.trust_pem)
            assert fresh.peer_id == b.peer_id
            await a._host.upgrader.tls.replace_identity(pki.identity("a", pki.crls(peer)))
            await until(a, lambda: not a.connected_peers())
            await until(b, lambda: not b.connected_peers())


async def test_garbage_starts_no_connection_and_disturbs_none() -> None:
    pki = Pki()
    async with (
        node(pki, "a", listen_addresses=QUIC) as a,
        node(pki, "b", listen_addresses=QUIC) as b,
        quic_peer(parse(direct_address(a))) as peer,
    ):
        with trio.fail_after(DEADLINE_S):
            await b.dial(direct_address(a))
            for datagram in garbage(500):
                await peer.socket.sendto(datagram, peer.to)
            assert await a.dial(direct_address(b)) == b.peer_id
        assert a._host.upgrader.unauthenticated.held_by("127.0.0.1") == 0


async def test_a_first_datagram_is_answered_by_a_retry_that_is_shorter() -> None:
    async with node(Pki(), "a", listen_addresses=QUIC) as a, quic_peer(parse(direct_address(a))) as peer:
        (first, *_) = peer.first_flight()
        answer = await peer.answer_to(first)
        assert pull_quic_header(answer, 0, 8)[1] == QuicPacketType.RETRY
        assert len(answer) < len(first) / 4
        assert a._host.upgrader.unauthenticated.held_by("127.0.0.1") == 0


async def test_an_unknown_version_is_answered_by_the_known_one_if_the_datagram_is_long_enough() -> None:
    async with node(Pki(), "a", listen_addresses=QUIC) as a, quic_peer(parse(direct_address(a))) as peer:
        begin = bytes.fromhex("c0babababa08") + bytes(8) + b"\x08" + bytes(8)
        answer = await peer.answer_to(begin + bytes(1200))
        assert answer.endswith(bytes.fromhex("00000001"))
        assert len(answer) < 50
        assert await peer.ignored(begin + bytes(100))


async def test_a_forged_token_gets_no_answer() -> None:
    async with node(Pki(), "a", listen_addresses=QUIC) as a, quic_peer(parse(direct_address(a))) as peer:
        token = secrets.token_bytes(40)
        head = bytes.fromhex("c00000000108") + bytes(8) + b"\x08" + bytes(8) + bytes([len(token)]) + token
        assert await peer.ignored(head + b"\x44\x00" + bytes(1200))
        assert a._host.upgrader.unauthenticated.held_by("127.0.0.1") == 0


def test_a_token_is_valid_for_one_address_and_one_connection_id_and_a_short_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(trio, "current_time", lambda: now_s)
    tokens = RetryTokens()
    token = tokens.make(REMOTE, b"first", b"current")
    assert tokens.check(token, REMOTE, b"current") == b"first"
    assert tokens.check(token, ("203.0.113.1", 4002), b"current") is None
    assert tokens.check(token, ("203.0.113.2", 4001), b"current") is None
    assert tokens.check(token, REMOTE, b"other") is None
    assert RetryTokens().check(token, REMOTE, b"current") is None
    for cut in range(len(token)):
        assert tokens.check(token[:cut], REMOTE, b"current") is None
    now_s += VALID_S + 1
    assert tokens.check(token, REMOTE, b"current") is None


async def test_unauthenticated_connections_are_limited_and_the_oldest_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node(Pki(), "a", listen_addresses=QUIC) as a:
        places = a._host.upgrader.unauthenticated
        monkeypatch.setattr(places, "_limit_per_party", 3)
        for _ in range(10):
            async with quic_peer(parse(direct_address(a))) as peer:
                retry = await peer.answer_to(peer.first_flight()[0])
                peer.quic.receive_datagram(retry, peer.to, trio.current_time())
                await peer.flush()
                await peer.socket.recvfrom(65536)
                assert 1 <= places.held_by("127.0.0.1") <= 3


async def test_a_datagram_from_another_address_does_not_reach_a_connection() -> None:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as a, node(pki, "b", listen_addresses=QUIC) as b:
        with trio.fail_after(DEADLINE_S):
            await b.dial(direct_address(a))
            await until(a, lambda: bool(a.connected_peers()))
        ((connection,),) = a._host.connections.values()
        assert isinstance(connection.muxed, QuicConnection)
        async with quic_peer(parse(direct_address(a))) as peer:
            known = next(iter(connection.muxed._udp._ids))
            assert await peer.ignored(b"\x40" + known + bytes(100))
        assert not connection.muxed.failure


async def test_a_peer_that_opens_and_resets_streams_fills_no_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_connection, "MAX_INCOMING", 8)
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as a, node(pki, "b", listen_addresses=QUIC) as b:
        with trio.fail_after(DEADLINE_S):
            await b.dial(direct_address(a))
            ((connection,),) = b._host.connections.values()
            await until(a, lambda: bool(a.connected_peers()))
            ((far,),) = a._host.connections.values()
            assert isinstance(far.muxed, QuicConnection)
            for _ in range(300):
                stream = await connection.muxed.open_stream()
                await stream.send_all(b"x")
                stream.reset()
                assert len(far.muxed._incoming) <= 8
            await ping(connection)


def test_few_datagrams_of_an_unauthenticated_connection_wait() -> None:
    path = UdpPath(None, REMOTE, parse("/ip4/203.0.113.1/udp/4001/quic-v1"), (b"1", b"2"))  # type: ignore[arg-type]
    for datagram in garbage(2 * MAX_WAITING_UNAUTHENTICATED):
        path.deliver(datagram)
    assert len(path.take()) == MAX_WAITING_UNAUTHENTICATED


async def test_a_stream_of_one_direction_ends_the_connection() -> None:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as a, node(pki, "b", listen_addresses=QUIC) as b:
        with trio.fail_after(DEADLINE_S):
            await b.dial(direct_address(a))
            ((connection,),) = b._host.connections.values()
            assert isinstance(connection.muxed, QuicConnection)
            protocol = connection.muxed._quic
            protocol.send_stream_data(protocol._open_stream(is_unidirectional=True), b"hello")
            connection.muxed._udp.wake()
            await until(b, lambda: not b.connected_peers())
        assert "opened a stream of one direction" in connection.muxed.failure
