"""Of several gateways, bulk data goes through one that relays it, where the nodes cannot connect directly."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from hypha_network.connection import Connection
from hypha_network.errors import OnlyRelayed
from hypha_network.network import Network
from hypha_network.pauses import Pauses
from hypha_network.services import relay
from hypha_network.services.relay_server import BulkLimits
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member

pytestmark = pytest.mark.anyio

BULK = BulkLimits(peer_bytes_per_s=1e9)
DATA = bytes(range(256)) * 4096  # more than a limited circuit carries
PUSH = "/test/push"


@dataclass
class Hidden:
    """A node that is reached only through its two gateways, `limited` and `other`, and the digests of its pushes."""

    pki: Pki
    limited: Network
    other: Network
    network: Network
    pushed: list[str]

    def through(self, relay: Network) -> str:
        """Its address through a gateway."""
        return next(address for address in self.network.addresses() if f"/p2p/{relay.peer_id}/" in address)


@asynccontextmanager
async def hidden(*, other: BulkLimits | None) -> AsyncIterator[Hidden]:
    pki, pushed = Pki(), list[str]()

    async def take(_: str, stream: Stream) -> None:
        digest = hashlib.sha256()
        while data := await stream.receive_some():
            digest.update(data)
        pushed.append(digest.hexdigest())

    async with (
        gateway(pki, "limited") as limited,
        gateway(pki, "other", relay_bulk=other) as second,
        member(pki, "hidden", limited, second, listen_addresses=(), relay_circuit=True) as network,
    ):
        network.handle_stream(PUSH, take)
        with trio.fail_after(DEADLINE_S):
            await network.wait_until(lambda: len(network.status().reservations) == 2)
        yield Hidden(pki, limited, second, network, pushed)


async def push(source: Network, target: Hidden) -> Connection | None:
    """Push to the hidden node; return the connection that is then the best."""
    with trio.fail_after(DEADLINE_S):
        stream = await source.open_stream(target.network.peer_id, PUSH)
        await stream.send_all(DATA)
        await stream.send_eof()
        assert not await stream.receive_some()
    return source._host.connection(target.network.peer_id)


@pytest.mark.parametrize("knows", ["both gateways", "the limited gateway"])
async def test_a_push_goes_through_the_gateway_that_relays_bulk_data(knows: str) -> None:
    async with hidden(other=BULK) as target:
        known = (target.limited, target.other) if knows == "both gateways" else (target.limited,)
        async with member(target.pki, "a", *known, listen_addresses=()) as a:
            await a.dial(target.through(target.limited))
            best = a._host.connection(target.network.peer_id)
            assert best is not None
            assert best.limited
            best = await push(a, target)
    assert target.pushed == [hashlib.sha256(DATA).hexdigest()]
    assert best is not None
    assert (best.address.relay, best.limited) == (target.other.peer_id, False)


def counting_circuits(network: Network, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the relays of the circuits are added that a node asks for from now on."""
    asked: list[str] = []
    dial = network._relays.dial

    async def counted(address: relay.Address, **how: bool) -> relay.RawConnection:
        asked.append(str(address.relay))
        return await dial(address, **how)

    monkeypatch.setattr(network._relays, "dial", counted)
    return asked


async def test_relays_that_turn_out_to_be_limited_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pauses, "wait_s", lambda *_: 0.0)
    async with (
        hidden(other=None) as target,
        member(target.pki, "a", target.limited, target.other, listen_addresses=()) as a,
    ):
        await a.dial(target.through(target.limited))
        asked = counting_circuits(a, monkeypatch)
        for _ in range(3):
            with trio.fail_after(DEADLINE_S), pytest.raises(OnlyRelayed):
                await a.open_stream(target.network.peer_id, PUSH)
        assert asked == [target.other.peer_id]
        assert len(a._host.connections[target.network.peer_id]) == 1


async def test_a_node_knows_from_its_reservations_which_gateways_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        hidden(other=None) as target,
        member(target.pki, "a", target.limited, target.other, listen_addresses=(), relay_circuit=True) as a,
    ):
        with trio.fail_after(DEADLINE_S):
            await a.wait_until(lambda: len(a.status().reservations) == 2)
        await a.dial(target.through(target.limited))
        asked = counting_circuits(a, monkeypatch)
        with trio.fail_after(DEADLINE_S), pytest.raises(OnlyRelayed):
            await a.open_stream(target.network.peer_id, PUSH)
        assert asked == []


async def test_several_pushes_at_once_share_a_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        hidden(other=BULK) as target,
        member(target.pki, "a", target.limited, target.other, listen_addresses=()) as a,
    ):
        await a.dial(target.through(target.limited))
        asked = counting_circuits(a, monkeypatch)
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(push, a, target)
        assert target.pushed == [hashlib.sha256(DATA).hexdigest()] * 4
        assert asked == [target.other.peer_id]


async def test_a_direct_connection_is_preferred_to_a_gateway_that_relays_bulk_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pki = Pki()

    async def wait(_: str, stream: Stream) -> None:
        await stream.receive_some()

    async with (
        gateway(pki, "limited") as limited,
        gateway(pki, "bulk", relay_bulk=BULK) as bulk,
        member(pki, "public", limited, bulk, relay_circuit=True) as public,
        member(pki, "a", limited, bulk, listen_addresses=()) as a,
    ):
        public.handle_stream(PUSH, wait)
        await a.dial(f"{direct_address(limited)}/p2p-circuit/p2p/{public.peer_id}")
        asked = counting_circuits(a, monkeypatch)
        with trio.fail_after(DEADLINE_S):
            await a.open_stream(public.peer_id, PUSH)
        assert a._host.has_direct(public.peer_id)
        assert asked == []
