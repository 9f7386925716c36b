"""Peers that do not complete the handshake keep nobody out, and cost little."""

import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from time import perf_counter

import pytest
import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.errors import ConnectionBroken
from hypha_network.network import Network
from hypha_network.wire import multistream
from hypha_network.wire import upgrade as upgrade_module
from hypha_network.wire.addresses import parse, source_of
from hypha_network.wire.processor import CpuBudget
from hypha_network.wire.tcp import Tcp
from hypha_network.wire.tls import PROTOCOL_ID as TLS
from hypha_network.wire.tls import TlsTransport
from hypha_network.wire.transport import RawConnection
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, node

pytestmark = pytest.mark.anyio
A = "12D3KooWBkAZ52FV28vNpUsNcSLLfdTZdhph8Vhb2w5hCENAinpB"
B = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"


async def healthy(_: str, __: HealthRequest) -> HealthResponse:
    return HealthResponse(healthy=True)


async def read_to_end(raw: RawConnection) -> None:
    """Read until the other end closes the connection."""
    while await raw.read(1024):
        pass


async def silent(network: Network, _: Pki) -> RawConnection:
    """A connection that sends nothing."""
    return await Tcp().connect(parse(direct_address(network)))


async def without_hello(network: Network, _: Pki) -> RawConnection:
    """A connection that begins TLS and goes silent."""
    raw = await Tcp().connect(parse(direct_address(network)))
    await multistream.select(raw, [TLS])
    return raw


async def without_muxer(network: Network, pki: Pki) -> RawConnection:
    """A connection that a member secured, but on which it never negotiates the muxer."""
    raw = await without_hello(network, pki)
    await TlsTransport(pki.identity("lazy")).secure(raw)
    return raw


@asynccontextmanager
async def crowded(network: Network, pki: Pki, kind: object, count: int) -> AsyncIterator[list[RawConnection]]:
    """Hold connections to a node that do not complete the handshake."""
    held = [await kind(network, pki) for _ in range(count)]  # type: ignore[operator]
    try:
        yield held
    finally:
        for raw in held:
            await raw.close()


@pytest.mark.parametrize("kind", [silent, without_hello, without_muxer])
async def test_a_member_connects_although_silent_connections_took_every_slot(
    kind: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade_module, "MAX_UNAUTHENTICATED", 20)
    pki = Pki()
    async with node(pki, "victim") as victim, node(pki, "member") as member:
        victim.handle(HEALTH, healthy)
        async with crowded(victim, pki, kind, 30) as held:
            with trio.fail_after(DEADLINE_S):
                await member.dial(direct_address(victim))
                assert (await member.request(victim.peer_id, HEALTH, HealthRequest())).healthy
                await read_to_end(held[0])  # the oldest made room


async def test_this_nodes_own_dials_need_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade_module, "MAX_UNAUTHENTICATED", 2)
    pki = Pki()
    async with (
        node(pki, "victim") as victim,
        node(pki, "member") as member,
        crowded(victim, pki, silent, 2) as held,
    ):
        for _ in range(3):
            await victim.dial(direct_address(member))
        with trio.move_on_after(0.05) as waiting:
            await read_to_end(held[0])
        assert waiting.cancelled_caught


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("/ip4/203.0.113.7/tcp/1", "203.0.113.7"),
        ("/ip6/::ffff:203.0.113.7/tcp/1", "203.0.113.7"),
        ("/ip6/2001:db8:0:7:1::2/tcp/1", "2001:db8:0:7::/64"),
        (f"/ip4/203.0.113.7/tcp/1/p2p/{A}/p2p-circuit/p2p/{B}", A),
    ],
)
def test_connections_count_to_an_ipv4_address_an_ipv6_64_or_a_relay(address: str, source: str) -> None:
    assert source_of(parse(address)) == source


async def test_handshakes_take_no_more_than_their_part_of_the_processor() -> None:
    budget = CpuBudget(share=0.25, burst_s=0.0)
    started = trio.current_time()
    for _ in range(20):
        await budget.turn()
        budget.charge(0.01, perf_counter())
    await budget.turn()
    assert trio.current_time() - started >= 20 * 0.01 / 0.25 * 0.9


FEW_DESCRIPTORS = textwrap.dedent(
    """
    import resource, sys, tempfile
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 160))
    from hypha_contracts import descriptors
    descriptors.raise_limit()
    assert descriptors.limit() == 160
    import trio
    from hypha_network.wire.tcp import Tcp
    from hypha_network.wire.addresses import parse
    from support.certs import Pki
    from support.networks import direct_address, node, DEADLINE_S

    async def main():
        pki = Pki()
        async with node(pki, "victim") as victim:
            async def say(text):
                print(text, flush=True)
                await trio.to_thread.run_sync(sys.stdin.readline)

            await say(direct_address(victim))
            files = [tempfile.TemporaryFile() for _ in range(20)]  # the ledger, logs and pushes of a node
            await say("opened files")
            try:
                while True:
                    files.append(tempfile.TemporaryFile())
            except OSError:
                await say("opened too many files")
            files.clear()
            await say("closed them")

    trio.run(main)
    """
)


async def test_connections_leave_descriptors_for_other_uses_and_survive_their_lack() -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", FEW_DESCRIPTORS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": "tests"},
    )

    async def hear() -> str:
        text = ""
        while not text.endswith("\n"):
            text += bytes(await process.stdout.receive_some()).decode()  # type: ignore[union-attr]
        return text.strip()

    async def go_on() -> None:
        await process.stdin.send_all(b"\n")  # type: ignore[union-attr]

    try:
        with trio.fail_after(DEADLINE_S):
            address = parse(await hear())
            held = [await Tcp().connect(address) for _ in range(200)]
            for raw in held[:180]:
                with suppress(ConnectionBroken):
                    await read_to_end(raw)
            await go_on()
            assert await hear() == "opened files"
            await go_on()
            assert await hear() == "opened too many files"
            held += [await Tcp().connect(address) for _ in range(10)]
            await go_on()
            assert await hear() == "closed them"
            last = await Tcp().connect(address)
            await multistream.select(last, [TLS])
            for raw in [*held, last]:
                await raw.close()
    finally:
        process.kill()
        await process.wait()
