"""Peers that break the protocols: each costs them a stream or a connection, and others nothing."""

import gc
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network import inbound_streams
from hypha_network.errors import NetworkError, RemoteRefused, StreamReset
from hypha_network.network import Network
from hypha_network.services import requests as requests_module
from hypha_network.services.requests import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES
from hypha_network.wire import upgrade as upgrade_module
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, messages, node, until

pytestmark = pytest.mark.anyio


async def healthy(_: str, __: HealthRequest) -> HealthResponse:
    return HealthResponse(healthy=True)


@asynccontextmanager
async def victim_and_peer(
    pki: Pki, health: Callable[[str, HealthRequest], Awaitable[HealthResponse]] = healthy
) -> AsyncIterator[tuple[Network, Network]]:
    async with node(pki, "victim") as victim, node(pki, "peer") as peer:
        victim.handle(HEALTH, health)
        await peer.dial(direct_address(victim))
        yield victim, peer


async def raw_exchange(peer: Network, victim: Network, body: bytes) -> bytes:
    stream = await peer.open_stream(victim.peer_id, HEALTH.id)
    with trio.fail_after(DEADLINE_S):
        await stream.send_all(body)
        await stream.send_eof()
        return await stream.read_to_end(1 << 20)


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"\xa1", b"garbage", b"\x9f" * 1000, b"\x81" * 100_000, b"\xa0\xa0"], ids=range(7)
)
async def test_a_malformed_request_is_refused_with_a_line_that_names_the_peer(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with victim_and_peer(Pki()) as (victim, peer):
        with pytest.raises(StreamReset):
            await raw_exchange(peer, victim, body)
        assert (await peer.request(victim.peer_id, HEALTH, HealthRequest())).healthy
        lines = [text for text in messages(caplog.records) if "malformed /hypha-health" in text]
        assert len(lines) == 1
        assert peer.peer_id in lines[0]


async def test_a_request_that_is_too_large_is_reset_while_it_arrives(caplog: pytest.LogCaptureFixture) -> None:
    async with victim_and_peer(Pki()) as (victim, peer):
        stream = await peer.open_stream(victim.peer_id, HEALTH.id)
        with trio.fail_after(DEADLINE_S), pytest.raises(StreamReset):
            await stream.send_all(bytes(100 * MAX_REQUEST_BYTES))
        assert any(f"more than {MAX_REQUEST_BYTES} bytes" in text for text in messages(caplog.records))


async def test_a_response_that_is_too_large_or_malformed_is_refused() -> None:
    pki = Pki()
    bodies = {"large": bytes(MAX_RESPONSE_BYTES + 1), "none": b"", "garbage": b"\xff\xff"}
    async with node(pki, "victim") as victim:
        for name, body in bodies.items():

            async def answer(_: str, stream: Stream, body: bytes = body) -> None:
                await stream.read_to_end(100)
                await stream.send_all(body)

            async with node(pki, name) as peer:
                peer.handle_stream(HEALTH.id, answer)
                await victim.dial(direct_address(peer))
                with trio.fail_after(DEADLINE_S), pytest.raises(RemoteRefused, match=peer.peer_id):
                    await victim.request(peer.peer_id, HEALTH, HealthRequest())


async def test_a_request_that_never_ends_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "REQUEST_TIMEOUT_S", 0.1)
    async with victim_and_peer(Pki()) as (victim, peer):
        stream = await peer.open_stream(victim.peer_id, HEALTH.id)
        await stream.send_all(b"\xa0")
        with trio.fail_after(DEADLINE_S), pytest.raises(StreamReset):
            await stream.receive_some()


async def test_a_stream_that_never_names_its_protocol_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_streams, "NEGOTIATION_TIMEOUT_S", 0.1)
    async with victim_and_peer(Pki()) as (victim, peer):
        connection = peer._host.connection(victim.peer_id)
        assert connection is not None
        muxed = await connection.muxed.open_stream()
        with trio.fail_after(DEADLINE_S), pytest.raises(StreamReset):
            await Stream(muxed, victim.peer_id).read_to_end(1024)


async def test_a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "UPGRADE_TIMEOUT_S", 0.1)
    async with node(Pki(), "victim") as victim:
        _, _, host, _, port = direct_address(victim).split("/")[:5]
        with trio.fail_after(DEADLINE_S):
            silent = await trio.open_tcp_stream(host, int(port))
            while await silent.receive_some():
                pass


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\x13/multistream/1.0.0\n\xff\xff\xff\xff"]
)
async def test_a_connection_that_sends_garbage_is_closed(garbage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "UPGRADE_TIMEOUT_S", 0.2)
    async with node(Pki(), "victim") as victim:
        _, _, host, _, port = direct_address(victim).split("/")[:5]
        with trio.fail_after(DEADLINE_S):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(garbage)
            try:
                while await stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        assert victim.status().healthy


async def test_concurrent_requests_of_one_peer_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "MAX_CONCURRENT_PER_PEER", 3)
    running = most = 0

    async def count(_: str, __: HealthRequest) -> HealthResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(0.01)
        running -= 1
        return HealthResponse(healthy=True)

    async with victim_and_peer(Pki(), count) as (victim, peer), trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(peer.request, victim.peer_id, HEALTH, HealthRequest())
    assert most == 3


async def test_the_limit_of_open_streams_shrinks_as_more_peers_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_streams, "MAX_INBOUND_STREAMS", 20)
    monkeypatch.setattr(inbound_streams, "MIN_INBOUND_STREAMS_PER_PEER", 2)

    async def refused(peer: Network, victim: Network) -> bool:
        try:
            await peer.open_stream(victim.peer_id, "/wait")
        except StreamReset:
            return True
        return False

    async def wait(_: str, __: Stream) -> None:
        await trio.sleep_forever()

    pki = Pki()
    async with victim_and_peer(pki) as (victim, peer), node(pki, "another") as another:
        victim.handle_stream("/wait", wait)
        with trio.fail_after(DEADLINE_S):
            alone = [await refused(peer, victim) for _ in range(30)].index(True)
            await another.dial(direct_address(victim))
            beside = [await refused(another, victim) for _ in range(30)].index(True)
        assert 8 <= beside <= 10 < alone <= 20  # the node's own protocols use some


async def test_a_hundred_senders_of_garbage_leave_memory_steady_and_honest_peers_served() -> None:
    async with victim_and_peer(Pki()) as (victim, peer):

        async def harass() -> None:
            for body in (b"\xff" * 50_000, b"\x81" * 50_000, b"\xbf" * 50_000):
                with pytest.raises(NetworkError):
                    await raw_exchange(peer, victim, body)

        async def wave() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(harass)
                for _ in range(10):
                    nursery.start_soon(peer.request, victim.peer_id, HEALTH, HealthRequest())

        await wave()
        tracemalloc.start()
        try:
            await wave()
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await wave()
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < 1 << 20
        await until(victim, lambda: victim.status().healthy)
