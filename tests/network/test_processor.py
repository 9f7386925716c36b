"""Peers share the processor: nobody's input delays that of the others."""

import logging
from contextlib import suppress
from math import inf
from time import perf_counter
from typing import Any

import pytest
import trio
import trio.testing
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network import host as host_module
from hypha_network.errors import DialError, NetworkError
from hypha_network.network import Network
from hypha_network.services import gossip, gossip_intake
from hypha_network.services.gossip_messages import Signer
from hypha_network.wire import processor
from hypha_network.wire import upgrade as upgrade_module
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.processor import MAX_FAVOURED_USE_S, MEMORY_S, CpuBudget, CpuShare, charged_to, share_processor
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, messages, node, until

pytestmark = pytest.mark.anyio
TOPIC = "hypha/worker"


async def healthy(_: str, __: HealthRequest) -> HealthResponse:
    return HealthResponse(healthy=True)


class Clock:
    """The time of day, and the part of it in which this thread had the processor, in seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.used_s = 0.0

    def busy(self, seconds: float) -> None:
        self.now_s += seconds
        self.used_s += seconds

    def preempted(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(processor, "perf_counter", lambda: clock.now_s)
    monkeypatch.setattr(processor, "thread_time", lambda: clock.used_s)
    return clock


async def steps_before_three_of(share: CpuShare, clock: Clock, preempted_s: float = 0.0) -> int:
    """Let a party take three steps while forty new ones take as many as they can; return how many steps all took.

    In each of its steps, the party loses the processor to another program for `preempted_s`.
    """
    share_processor()
    steps = 0

    async def work(share: CpuShare, limit: float, preempted_s: float) -> None:
        nonlocal steps
        with charged_to(share):
            while limit > 0:
                await trio.lowlevel.checkpoint()
                await share.turn()
                clock.busy(0.003)
                clock.preempted(preempted_s)
                limit -= 1
                steps += 1

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(work, CpuShare(), inf, 0.0)
        while steps < 200:
            await trio.lowlevel.checkpoint()
        before = steps
        await work(share, 3, preempted_s)
        nursery.cancel_scope.cancel()
    return steps - before


async def test_the_party_that_used_least_time_goes_first(clock: Clock) -> None:
    assert await steps_before_three_of(CpuShare(), clock) < 60  # behind the others it would be 120


async def test_a_party_does_not_pay_for_the_time_of_other_programs(clock: Clock) -> None:
    assert await steps_before_three_of(CpuShare(), clock, preempted_s=0.1) < 60


async def test_a_party_that_did_useful_work_goes_before_those_that_used_less(clock: Clock) -> None:
    favoured = CpuShare()
    favoured.charge(MAX_FAVOURED_USE_S / 2, clock.now_s)
    favoured.favour()
    assert await steps_before_three_of(favoured, clock) < 30  # otherwise it waits until the others have used as much


async def test_a_source_with_one_handshake_does_not_wait_behind_those_of_another() -> None:
    budget = CpuBudget(share=1.0, burst_s=0.0)
    begun: list[str] = []

    async def shake_hands(source: str) -> None:
        turn = budget.turn_of(source)
        for _ in range(2):
            await turn()
            begun.append(source)
            budget.charge(0.001, perf_counter())

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(shake_hands, "flood")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(shake_hands, "bridge")
    assert [n for n, source in enumerate(begun) if source == "bridge"][-1] < 10


def test_used_time_is_forgotten() -> None:
    share = CpuShare()
    share.charge(1.0, now_s=0.0)
    assert share.used_s(0.0) == 1.0
    assert share.used_s(10 * MEMORY_S) < 0.001


async def gossip_stream(peer: Network, victim: Network) -> Any:
    return await peer.open_stream(victim.peer_id, gossip.PROTOCOLS[0])


async def test_a_peer_that_forges_messages_is_refused_for_a_while() -> None:
    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "forger") as forger:
        victim.subscribe(TOPIC, bytes)
        await forger.dial(direct_address(victim))
        signer = Signer(pki.identity("forged").seed, pki.identity("forged").peer_id)
        forged = []
        for _ in range(gossip_intake.MAX_FORGERIES + 1):
            message = signer.sign(TOPIC, b"x")
            message.data = b"y"
            forged.append(message)
        stream = await gossip_stream(forger, victim)
        await stream.send_all(prefixed(rpc_pb2.RPC(publish=forged).SerializeToString()))
        await until(victim, lambda: not victim.connected_peers())
        await until(forger, lambda: not forger.connected_peers())
        with suppress(DialError):  # TLS may be complete for the dialler before the other side refuses it
            await forger.dial(direct_address(victim))
        await until(forger, lambda: not forger.connected_peers())
        assert not victim.connected_peers()


async def test_forged_messages_of_one_rpc_let_other_tasks_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip_intake, "MAX_FORGERIES", 10_000)
    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "forger") as forger:
        victim.subscribe(TOPIC, bytes)
        await forger.dial(direct_address(victim))
        message = Signer(pki.identity("forged").seed, pki.identity("forged").peer_id).sign(TOPIC, b"x")
        message.data = b"y"
        intake, checked, passes = victim._pubsub._intake, 0, 0
        original = intake.handle

        def count(*arguments: Any) -> None:
            nonlocal checked
            checked += 1
            original(*arguments)

        monkeypatch.setattr(intake, "handle", count)
        stream = await gossip_stream(forger, victim)
        await stream.send_all(prefixed(rpc_pb2.RPC(publish=[message] * 300).SerializeToString()))
        most = 0
        with trio.fail_after(DEADLINE_S):
            while checked < 300:
                before = checked
                await trio.lowlevel.checkpoint()
                most, passes = max(most, checked - before), passes + 1
        assert most <= 2


@pytest.mark.parametrize("body", ["seqno", "text"])
async def test_malformed_gossip_is_one_line_and_no_traceback(body: str, caplog: pytest.LogCaptureFixture) -> None:
    message = rpc_pb2.Message(from_id=b"x" * 40, seqno=b"\xff" * 1800, topicIDs=[TOPIC])
    data = rpc_pb2.RPC(publish=[message]).SerializeToString()
    if body == "text":
        data = data.replace(TOPIC.encode(), b"\xff" * len(TOPIC))
    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "peer") as peer:
        victim.subscribe(TOPIC, bytes)
        victim.handle(HEALTH, healthy)
        await peer.dial(direct_address(victim))
        for _ in range(20):
            stream = await gossip_stream(peer, victim)
            await stream.send_all(prefixed(data))
        assert (await peer.request(victim.peer_id, HEALTH, HealthRequest())).healthy
        await trio.sleep(0.05)
    lines = [text for text in messages(caplog.records) if peer.peer_id in text and "gossip" in text]
    assert len(lines) == (body == "seqno")
    assert not any(record.exc_info for record in caplog.records if record.levelno > logging.DEBUG)


async def test_whatever_a_stream_raises_is_one_line_and_ends_only_the_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(_: str, __: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise RecursionError("too deep")

    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "peer") as peer:
        victim.handle(HEALTH, healthy)
        victim.handle_stream("/fail", fail)
        await peer.dial(direct_address(victim))
        for _ in range(10):
            stream = await peer.open_stream(victim.peer_id, "/fail")
            with pytest.raises(NetworkError):
                await stream.read_exactly(1)
        assert (await peer.request(victim.peer_id, HEALTH, HealthRequest())).healthy
    lines = [record for record in caplog.records if "/fail failed" in record.getMessage()]
    assert len(lines) == 1
    assert not any(record.exc_info for record in caplog.records if record.levelno > logging.DEBUG)


async def test_a_peer_with_many_connections_makes_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "MAX_CONNECTIONS", 5)
    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "greedy") as greedy, node(pki, "member") as member:
        victim.handle(HEALTH, healthy)
        for _ in range(5):
            await greedy.dial(direct_address(victim))
        await until(victim, lambda: len(victim._host.connections.get(greedy.peer_id, ())) == 5)
        await member.dial(direct_address(victim))
        assert (await member.request(victim.peer_id, HEALTH, HealthRequest())).healthy
        await until(victim, lambda: len(victim._host.connections[greedy.peer_id]) == 4)


async def test_a_connected_peer_keeps_its_share_however_many_others_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "MAX_CPU_SHARES", 3)
    pki = Pki()
    async with node(pki, "a") as a, node(pki, "b") as b:
        await a.dial(direct_address(b))
        connection, upgrader = a._host.connection(b.peer_id), a._host.upgrader
        assert connection is not None
        others = [upgrader.cpu_share(f"peer {number}") for number in range(10)]
        assert upgrader.cpu_share(b.peer_id) is connection.muxed.cpu_share
        del others
        assert len(upgrader._cpu_shares) <= 4
