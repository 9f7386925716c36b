"""Which schedulers a real node serves, and with what, while others attack the market."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.pubsub.pb import rpc_pb2

from hypha_messages.advertisement import TOPIC, RequestWorker, WorkerSpec, encode
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources, SystemTime, peer_id_from_ed25519
from hypha_network.network import Network
from hypha_network.services.gossip import PROTOCOLS
from hypha_network.services.gossip_messages import Signer
from hypha_network.wire.multistream import prefixed
from support.certs import Pki
from support.jobs import train_spec
from support.networks import gateway, member, node
from support.node_process import Scheduler, Stage, stage

pytestmark = pytest.mark.anyio

REFERENCE = Resources(cpu=1, memory=1)
"""What the reference's scheduler requests by default, less its GPU memory. It leaves the storage open."""
ROOM = {"gpu": 0, "cpu": 8, "memory": 32, "storage": 160}
RAISED = Resources(cpu=1, memory=4, storage=20)
PER_S = 300
"""Requests of fresh keys per second on each way."""
KNOWN_WITHIN_S = 1.0
NEW_WITHIN_S = 5.0


@pytest.mark.parametrize(("strategy", "reserved"), [("whole", Resources(**ROOM)), ("flexible", RAISED)])
async def test_a_job_with_the_reference_schedulers_default_resources_is_limited_and_completes(
    strategy: str, reserved: Resources
) -> None:
    pki = Pki()
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "finish", resources=ROOM, offer={"strategy": strategy}) as s,
    ):
        lease = await s.scheduler.lease(REFERENCE)
        assert lease.offer.message.resources == reserved
        task_id = uuid4()
        assert await s.scheduler.dispatch(lease, train_spec(), task_id)
        report = await s.scheduler.status()
        assert (report.task_id, report.status.type) == (task_id, "Finished")
        (limits,) = [line for line in s.node.log.splitlines() if f"limits of job {task_id}" in line]
        assert f"RLIMIT_FSIZE={reserved.storage * 1e9:.0f}" in limits
        assert f"{reserved.memory * 1e9:.0f}" in limits


def of_fresh_key() -> bytes:
    """A correctly signed request for nothing, by a key that exists for this request alone."""
    seed = os.urandom(32)
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    spec = WorkerSpec(resources=Resources(), executor=[ExecutorDescriptor(class_="train", name="test")])
    timeout = SystemTime(secs_since_epoch=2**63, nanos_since_epoch=0)
    request = RequestWorker(id=uuid4(), spec=spec, timeout=timeout, bid=1e308)
    message = Signer(seed, peer_id_from_ed25519(public)).sign(TOPIC, encode(request))
    return prefixed(rpc_pb2.RPC(publish=[message]).SerializeToString())


@asynccontextmanager
async def flooding(attacker: Network, addresses: list[str]) -> AsyncIterator[list[int]]:
    """Send requests of fresh keys to these nodes; yields a list whose sum is the number of sent ones."""
    sent: list[int] = []

    async def flood(address: str, messages: list[bytes]) -> None:
        peer_id = await attacker.dial(address)
        connection = attacker._host.connection(peer_id)
        assert connection is not None
        stream = await connection.open(PROTOCOLS)
        for start in range(0, len(messages), PER_S // 20):
            batch = messages[start : start + PER_S // 20]
            await stream.send_all(b"".join(batch))
            sent.append(len(batch))
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(flood, address, [of_fresh_key() for _ in range(20 * PER_S)])
        yield sent
        nursery.cancel_scope.cancel()


async def answered(scheduler: Scheduler, within_s: float) -> float:
    """Publish one request, and return the time until its offer; fail if there is none in time."""
    began = time.monotonic()
    request = await scheduler.ask(RAISED)
    with trio.fail_after(within_s):
        await scheduler._offered.until(lambda: bool(request.offers))
    return time.monotonic() - began


async def address_of(s: Stage) -> str:
    """Return where the node listens, once it is ready and the scheduler knows it."""
    await s.scheduler.lease(RAISED)
    (line,) = [line for line in s.node.log.splitlines() if "ready: gateways" in line]
    return line.rpartition("listening on ")[2].strip('"')


async def test_fresh_keys_cost_neither_a_proved_nor_a_new_scheduler_an_offer_and_reserve_nothing() -> None:
    pki = Pki()
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "run", resources=ROOM, offer={"strategy": "flexible", "price": 1.0}) as s,
        node(pki, "attacker", listen_addresses=()) as attacker,
    ):
        entry.subscribe(TOPIC, bytes)
        address = await address_of(s)
        async with flooding(attacker, [address, entry.addresses()[0]]) as sent:
            async with member(pki, "new", entry) as network:
                await answered(Scheduler(network), NEW_WITHIN_S)
            for _ in range(5):
                await answered(s.scheduler, KNOWN_WITHIN_S)
                await trio.sleep(0.5)
            assert sum(sent) > PER_S
        assert "Traceback" not in s.node.log
        assert len(s.node.log) < 20_000
        assert s.node.log.count("offered lease") <= 4
