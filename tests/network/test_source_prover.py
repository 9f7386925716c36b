"""A node that hears only proved sources, in a flood of messages that fresh keys have signed."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.types import peer_id_from_ed25519
from hypha_network.network import Network
from hypha_network.services import gossip, gossip_intake
from hypha_network.services.gossip_messages import Gossip, Signer
from hypha_network.services.source_prover import _MAX_CIRCUITS
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, gateway, member, node, until

pytestmark = pytest.mark.anyio

TOPIC = "hypha/worker"
NEW_WITHIN_S = 5.0


def of_fresh_key(data: bytes = bytes(200)) -> rpc_pb2.Message:
    """A message that is signed correctly, by a key that exists for this message alone."""
    seed = os.urandom(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return Signer(seed, peer_id_from_ed25519(public)).sign(TOPIC, data)


async def stream_to(attacker: Network, victim: Network) -> Stream:
    await attacker.dial(direct_address(victim))
    found = attacker._host.connection(victim.peer_id)
    assert found is not None
    return await found.open(gossip.PROTOCOLS)


async def send(stream: Stream, *messages: rpc_pb2.Message) -> None:
    for message in messages:
        await stream.send_all(prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString()))


async def flood(stream: Stream) -> None:
    """Send a few hundred messages a second, each with a key of its own."""
    while True:
        await send(stream, *(of_fresh_key() for _ in range(10)))
        await trio.sleep(0.03)


@asynccontextmanager
async def worker(pki: Pki, entry: Network) -> AsyncIterator[tuple[Network, trio.MemoryReceiveChannel[Gossip[bytes]]]]:
    async with member(pki, "worker", entry) as network:
        received = network.subscribe(TOPIC, bytes, 1000, proved_per_s=1000)
        await until(entry, lambda: network.peer_id in entry.subscribers(TOPIC))
        yield network, received


async def test_a_message_of_a_fresh_key_is_never_delivered_and_its_key_is_not_proved() -> None:
    pki = Pki()
    async with gateway(pki) as entry, worker(pki, entry) as (network, received), node(pki, "attacker") as attacker:
        await send(await stream_to(attacker, network), of_fresh_key())
        await until(attacker, lambda: bool(attacker.subscribers(TOPIC)))
        await attacker.publish(TOPIC, b"of the forwarder")
        with trio.fail_after(DEADLINE_S):
            assert (await received.receive()).source == attacker.peer_id
            while network._pubsub._intake._prover._proving or len(network._pubsub._intake._prover._held):  # noqa: ASYNC110
                await trio.sleep(0.01)
        with pytest.raises(trio.WouldBlock):
            received.receive_nowait()


async def test_schedulers_are_heard_in_a_flood_of_fresh_keys_on_every_way() -> None:
    pki = Pki()
    async with (
        gateway(pki) as entry,
        worker(pki, entry) as (network, received),
        member(pki, "proved", entry) as proved,
        node(pki, "attacker") as attacker,
        trio.open_nursery() as nursery,
    ):
        entry.subscribe(TOPIC, bytes)
        await network.dial(direct_address(proved))
        for victim in (network, entry):
            nursery.start_soon(flood, await stream_to(attacker, victim))
        await trio.sleep(0.5)
        await until(entry, lambda: bool(proved.subscribers(TOPIC)))
        for number in range(5):
            await proved.publish(TOPIC, b"proved %d" % number)
        async with member(pki, "new", entry) as new:
            await until(new, lambda: entry.peer_id in new.subscribers(TOPIC))
            with trio.fail_after(NEW_WITHIN_S):
                await new.publish(TOPIC, b"new")  # once: the reference scheduler does not repeat its request
                heard = {(await received.receive()).message for _ in range(6)}
        assert heard == {b"new", *(b"proved %d" % number for number in range(5))}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("forged", [True, False])
async def test_a_forwarder_of_held_messages_is_refused_if_it_forged_them(forged: bool) -> None:
    pki = Pki()
    async with gateway(pki) as entry, member(pki, "worker", entry) as network, node(pki, "attacker") as attacker:
        intake = network._pubsub._intake
        network.subscribe(TOPIC, json.loads, 1000, proved_per_s=1000)
        await attacker.dial(direct_address(network))
        await until(network, lambda: attacker.peer_id in network.connected_peers())
        for _ in range(gossip_intake.MAX_FORGERIES + 10):
            message = of_fresh_key(b"1" if forged else b"this does not decode")
            message.data = b"2" if forged else message.data
            assert not intake._is_valid(attacker.peer_id, message.SerializeToString())
        if forged:
            await until(network, lambda: attacker.peer_id not in network.connected_peers())
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        assert (attacker.peer_id in network.connected_peers()) != forged


async def test_a_source_stays_proved_after_its_connection_has_ended() -> None:
    pki = Pki()
    async with node(pki, "a") as a:
        async with node(pki, "b") as b:
            await b.dial(direct_address(a))
        await until(a, lambda: not a.connected_peers())
        assert a._host.proved(b.peer_id)
        assert not a._host.proved(pki.identity("c").peer_id)


async def test_a_flood_costs_no_verified_signatures_beyond_a_small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = 0
    original = gossip_intake.verify

    def count(message: rpc_pb2.Message) -> str:
        nonlocal verified
        verified += 1
        return original(message)

    monkeypatch.setattr(gossip_intake, "verify", count)
    monkeypatch.setattr(gossip_intake, "MAX_FORGERIES", 10_000)
    pki = Pki()
    async with gateway(pki) as entry, worker(pki, entry) as (network, _), node(pki, "attacker") as attacker:
        stream = await stream_to(attacker, network)
        messages = [of_fresh_key() for _ in range(2000)]
        for forged in messages[::2]:
            forged.data = b"forged"
        await send(stream, *messages)
        with trio.fail_after(DEADLINE_S):
            while len(network._pubsub._intake._prover._held) < 1500:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert verified < 400
        assert len(network._pubsub._intake._prover._circuits) <= _MAX_CIRCUITS
        assert network._pubsub._intake._prover._held.size_bytes < 4 * 1024 * 1024
