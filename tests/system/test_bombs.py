"""A node goes on answering while peers send it messages that are meant to stop it."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.advertisement import TOPIC
from hypha_messages.api import API
from hypha_messages.health import HEALTH, HealthRequest
from hypha_messages.progress import PROGRESS
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.services.gossip import MAX_RPC_BYTES, PROTOCOLS
from hypha_network.services.gossip_messages import Signer
from hypha_network.wire.multistream import prefixed
from support.cbor_bombs import BOMBS
from support.certs import Pki
from support.networks import gateway, member
from support.node_process import stage

pytestmark = [pytest.mark.alone, pytest.mark.anyio, pytest.mark.timeout(180)]

ANSWER_S = 0.020
ATTEMPTS = 5
"""Each time the same bombs come first; noise of the machine does not slow down every attempt."""
LARGEST_GOSSIP_BYTES = MAX_RPC_BYTES - 1024

DELAYED = b"\xa1\x64spec\xa1\x69resources\xa1\x63cpu"
"""An advertisement up to its number of cores."""


class Attacker:
    """Sends bombs by every way that a peer has, in messages signed by a key without any certificate."""

    def __init__(self, pki: Pki, network: Network, victim: str) -> None:
        identity = pki.identity("unknown to the network")
        self._author = Signer(identity.seed, identity.peer_id)
        self._network = network
        self._victim = victim

    async def throw(self, bomb: bytes) -> None:
        """Send a bomb by gossip, if it fits, and as a request of each protocol."""
        async with trio.open_nursery() as nursery:
            if len(bomb) < LARGEST_GOSSIP_BYTES:
                for data in (bomb, DELAYED + bomb):
                    nursery.start_soon(ignore_refusals, self._gossip, data)
            for protocol in (API.id, HEALTH.id, PROGRESS.id):
                nursery.start_soon(ignore_refusals, self._request, protocol, bomb[: 1 << 20])

    async def _gossip(self, data: bytes) -> None:
        stream = await self._network.open_stream(self._victim, PROTOCOLS[0])
        rpc = rpc_pb2.RPC(publish=[self._author.sign(TOPIC, data)])
        await stream.send_all(prefixed(rpc.SerializeToString()))

    async def _request(self, protocol: str, data: bytes) -> None:
        stream = await self._network.open_stream(self._victim, protocol)
        await stream.send_all(data)
        await stream.send_eof()


async def ignore_refusals(send: Callable[..., Awaitable[None]], *args: object) -> None:
    with suppress(NetworkError):
        await send(*args)


async def test_health_requests_are_answered_at_once_while_bombs_of_every_kind_arrive() -> None:
    pki = Pki()
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "run") as s,
        member(pki, "honest", entry) as honest,
        member(pki, "attacker", entry) as hostile,
    ):
        worker = (await s.scheduler.lease()).peer_id
        attacker = Attacker(pki, hostile, worker)
        slow = {}
        for name, bomb in BOMBS.items():
            answers_s = []
            for _ in range(ATTEMPTS):
                await attacker.throw(bomb)
                started = time.perf_counter()
                assert (await honest.request(worker, HEALTH, HealthRequest(), timeout_s=60)).healthy
                answers_s.append(time.perf_counter() - started)
            if min(answers_s) > ANSWER_S:
                slow[name] = answers_s
        assert slow == {}
        assert "refused gossip" in s.node.log
        assert "malformed /hypha-" in s.node.log  # a line for the first of the requests; the others are rate-limited
        assert "Traceback" not in s.node.log
