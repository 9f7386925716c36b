"""What connections and announced host names cost a node before it knows the peer."""

import socket
from contextlib import suppress
from time import perf_counter

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypha_network.errors import DialError
from hypha_network.wire import race as race_module
from hypha_network.wire import tcp as tcp_module
from hypha_network.wire.addresses import parse, parse_cidrs
from hypha_network.wire.processor import CpuBudget, share_processor
from hypha_network.wire.tcp import ACCEPT_CPU_SHARE, Tcp
from hypha_network.wire.transport import RawConnection

pytestmark = pytest.mark.anyio

CONNECTIONS = 200
COST_S = 0.001


async def test_accepting_takes_no_more_than_its_part_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    charged_s, accepted, all_accepted = 0.0, 0, trio.Event()

    class Measured(CpuBudget):
        def charge(self, elapsed_s: float, now_s: float) -> None:
            nonlocal charged_s
            charged_s += elapsed_s
            super().charge(elapsed_s, now_s)

    async def accept(_: RawConnection) -> None:
        nonlocal accepted
        end = perf_counter() + COST_S
        while perf_counter() < end:
            pass
        accepted += 1
        if accepted == CONNECTIONS:
            all_accepted.set()

    def flood(port: int) -> None:
        for _ in range(CONNECTIONS):
            socket.create_connection(("127.0.0.1", port)).close()

    monkeypatch.setattr(tcp_module, "CpuBudget", Measured)
    share_processor()
    async with trio.open_nursery() as nursery:
        began = perf_counter()
        (address,) = await Tcp().listen(parse("/ip4/127.0.0.1/tcp/0"), accept, lambda: None, nursery)
        await trio.to_thread.run_sync(flood, address.port)
        await all_accepted.wait()
        elapsed_s = perf_counter() - began
        nursery.cancel_scope.cancel()
    assert charged_s > 0.9 * CONNECTIONS * COST_S
    assert charged_s < ACCEPT_CPU_SHARE * elapsed_s + 0.1


class Slow(trio.abc.HostnameResolver):
    """A resolver that never answers, and counts the look-ups under way."""

    def __init__(self) -> None:
        self.names: list[object] = []

    async def getaddrinfo(self, host: object, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        self.names.append(host)
        await trio.sleep_forever()
        raise AssertionError

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise AssertionError


async def test_few_announced_host_names_are_looked_up_at_once_and_delay_no_configured_one() -> None:
    async def connect(name: str, excluded: tuple[str, ...]) -> None:
        with suppress(DialError):
            await Tcp().connect(parse(f"/dns4/{name}/tcp/1"), parse_cidrs(excluded))

    resolver = Slow()
    trio.socket.set_custom_hostname_resolver(resolver)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(connect, f"announced-{number}", ("10.0.0.0/8",))
        await wait_all_tasks_blocked()
        assert len(resolver.names) == 8
        nursery.start_soon(connect, "gateway", ())
        await wait_all_tasks_blocked()
        assert len(resolver.names) == 9
        nursery.cancel_scope.cancel()


SILENT = "192.0.2.1"


class Two(Slow):
    """A resolver that knows two addresses for every name."""

    async def getaddrinfo(self, _: object, port: object, *__: object, **___: object) -> list[object]:  # type: ignore[override]
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        return [(*kind, (host, port)) for host in (SILENT, "127.0.0.1")]


async def test_the_next_address_of_a_name_is_tried_beside_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "HEAD_START_S", 0.01)
    open_tcp_stream = trio.open_tcp_stream

    async def open_unless_silent(host: str, port: int) -> trio.SocketStream:
        if host == SILENT:
            await trio.sleep_forever()
        return await open_tcp_stream(host, port)

    async def accept(_: RawConnection) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", open_unless_silent)
    async with trio.open_nursery() as nursery:
        (address,) = await Tcp().listen(parse("/ip4/127.0.0.1/tcp/0"), accept, lambda: None, nursery)
        trio.socket.set_custom_hostname_resolver(Two())
        name = parse(f"/dns4/gateway/tcp/{address.port}")
        await (await Tcp().connect(name)).close()
        with pytest.raises(DialError, match=r"192\.0\.2\.1 is in a network of exclude_cidr"):
            await Tcp().connect(name, parse_cidrs(("192.0.2.0/24", "127.0.0.0/8")))
        nursery.cancel_scope.cancel()
