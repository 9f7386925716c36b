"""A node under attack: a hundred certified peers and some strangers break every protocol while a job goes on."""

import random
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
from libp2p.pubsub.pb import rpc_pb2

from hypha_devnet.client import Lease
from hypha_messages.advertisement import TOPIC
from hypha_messages.api import API, DispatchJob, RenewLease
from hypha_messages.health import HEALTH, HealthRequest
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.streams import PUSH
from hypha_messages.types import Resources
from hypha_network.errors import NetworkError
from hypha_network.network import Network
from hypha_network.wire.multistream import encode_varint, prefixed
from hypha_network.wire.streams import Stream
from hypha_network.wire.yamux_frames import DATA, HEADER, PING, SYN, VERSION
from support.certs import Pki
from support.jobs import train_spec
from support.networks import gateway, member, node
from support.node_process import NodeProcess, Scheduler, Stage, stage

pytestmark = [pytest.mark.alone, pytest.mark.anyio, pytest.mark.timeout(300)]

GOSSIP = "/meshsub/1.1.0"
PEERS = 100
ROUNDS = 6
WAVES = 6
WARM_UP_WAVES = 3
MAX_GROWTH_MIB = 192
"""What may wait unread (64 MiB), a hundred connections with their tasks, and what the allocator keeps."""
MAX_LATER_GROWTH_MIB = 128
"""Later waves may find the machine less busy than the first ones, and so get more of what may wait unread to wait."""
ANSWER_S = 30.0
SMALL = Resources(cpu=1, memory=1, storage=1)
ROOM = {"gpu": 0, "cpu": 32, "memory": 32, "storage": 32}
FLEXIBLE = {"strategy": "flexible", "floor": 1.0}

HONEST = """
import http.client, json, os, socket

def connect():
    connection = http.client.HTTPConnection("bridge")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(os.environ["SOCKET_PATH"])
    return connection

def post(connection, path, body):
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()

peers = {"type": "Peers", "peers": [PEER], "strategy": "All"}
calls = connect()
for line in post(connect(), "/resources/receive", {"receive": peers, "out_dir": "incoming"}):
    if line.startswith(b"data: "):
        path = json.loads(line[6:])["path"]
        status = {"status": {"batch_size": 1}}
        for call, body in ("resources/send", {"send": peers, "path": path}), ("status/send", status):
            answer = post(calls, "/" + call, body)
            assert answer.status == 200, answer.read()
            answer.read()
"""


class Attacker:
    """A peer with a certificate of this network and no manners."""

    def __init__(self, network: Network, victim: str, address: str) -> None:
        self.network = network
        self.victim = victim
        self.address = address

    async def raw(self) -> Any:
        """The muxed connection with the victim, a new one if it has closed the last one."""
        if self.network._host.connection(self.victim) is None:
            await self.network.dial(self.address)
        connection = self.network._host.connection(self.victim)
        if connection is None:
            raise NetworkError("closed already")
        return connection.muxed

    async def say(self, protocol: str, *pieces: bytes, end: bool = True) -> None:
        await self.raw()
        stream = await self.network.open_stream(self.victim, protocol)
        for piece in pieces:
            await stream.send_all(piece)
        if end:
            await stream.send_eof()
            await stream.read_to_end(1 << 20)


def requests_of_garbage(protocol: str) -> Callable[[Attacker], Awaitable[None]]:
    async def attack(attacker: Attacker) -> None:
        for body in (b"\xff" * 1000, b"\x81" * 50_000, b"\xbf" * 50_000, b"", b"\xa0\xa0", bytes(2 << 20)):
            with suppress(NetworkError):
                await attacker.say(protocol, body)

    return attack


async def negotiate_with_endless_lengths(attacker: Attacker) -> None:
    for nonsense in (b"\xff" * 100, encode_varint(1 << 31), b"\x13/multistream/1.0.0\n\xff\xff\xff\xff\x0f"):
        stream = await (await attacker.raw()).open_stream()
        await stream.send_all(nonsense)
        with suppress(NetworkError):
            await stream.receive_some()


async def gossip_that_is_too_large(attacker: Attacker) -> None:
    for body in (b"\xff" * 20, encode_varint(1 << 30) + bytes(1 << 20), prefixed(b"\xff" * 60_000)):
        with suppress(NetworkError):
            await attacker.say(GOSSIP, body)


async def gossip_that_is_forged(attacker: Attacker) -> None:
    forged = [
        rpc_pb2.Message(from_id=b"\0\x24" + bytes(36), seqno=n.to_bytes(8, "big"), topicIDs=[TOPIC], signature=b"no")
        for n in range(300)
    ]
    await attacker.say(GOSSIP, prefixed(rpc_pb2.RPC(publish=forged).SerializeToString()), end=False)


async def subscribe_to_everything(attacker: Attacker) -> None:
    for batch in range(20):
        options = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=f"topic {batch} {n}") for n in range(1000)]
        with suppress(NetworkError):
            await attacker.say(GOSSIP, prefixed(rpc_pb2.RPC(subscriptions=options).SerializeToString()), end=False)


def frames(*raw: bytes) -> Callable[[Attacker], Awaitable[None]]:
    async def attack(attacker: Attacker) -> None:
        for data in raw:
            muxed = await attacker.raw()
            with suppress(Exception):  # the connection breaks under it, and that in many ways
                await muxed.secured.write(data)
            await trio.sleep(0.05)

    return attack


async def push_what_nobody_asked_for(attacker: Attacker) -> None:
    for data in (b"", b"\x05", struct.pack("<Q", 1 << 60), bytes(1 << 20)):
        with suppress(NetworkError):
            await attacker.say(PUSH, data)


async def use_leases_of_others(attacker: Attacker) -> None:
    await attacker.raw()
    for _ in range(20):
        renewal = await attacker.network.request(attacker.victim, API, RenewLease(id=uuid4()))
        dispatch = await attacker.network.request(attacker.victim, API, DispatchJob(id=uuid4(), spec=train_spec()))
        assert renewal.failed
        assert dispatch.failed


async def stall(attacker: Attacker) -> None:
    """Open streams by the hundred, fill their windows and wait."""
    muxed = await attacker.raw()
    with trio.move_on_after(0.5):
        for number in range(120):
            stream = await muxed.open_stream()
            protocol = (HEALTH.id, API.id, PUSH)[number % 3]
            await stream.send_all(prefixed(b"/multistream/1.0.0\n") + prefixed(f"{protocol}\n".encode()))
            attacker.network._host.nursery.start_soon(ignore_errors, stream.send_all, bytes(128 * 1024))


async def ignore_errors(step: Callable[..., Awaitable[None]], *args: Any) -> None:
    with suppress(NetworkError, trio.ClosedResourceError):
        await step(*args)


ATTACKS: list[Callable[[Attacker], Awaitable[None]]] = [
    requests_of_garbage(API.id),
    requests_of_garbage(HEALTH.id),
    requests_of_garbage(PROGRESS.id),
    negotiate_with_endless_lengths,
    gossip_that_is_too_large,
    gossip_that_is_forged,
    subscribe_to_everything,
    frames(
        HEADER.pack(VERSION, DATA, SYN, 1001, 0xFFFFFFFF),
        HEADER.pack(9, 9, 9, 9, 9),
        HEADER.pack(VERSION, DATA, 0, 77_777, 10),
        b"".join(HEADER.pack(VERSION, PING, SYN, 0, n) for n in range(5000)),
    ),
    push_what_nobody_asked_for,
    use_leases_of_others,
    stall,
]


async def push_as_a_named_peer(attacker: Attacker) -> None:
    """Push a part, far too much, and then many that stop in the middle: what a sender that the job names may do."""
    with suppress(NetworkError):
        await attacker.say(PUSH, struct.pack("<Q", 60) + b'{"x":')
    with suppress(NetworkError), trio.move_on_after(1):
        await attacker.say(PUSH, struct.pack("<Q", 2), b"{}", *([bytes(256 * 1024)] * 40), end=False)
    for _ in range(20):
        with suppress(NetworkError), trio.move_on_after(0.2):
            await attacker.say(PUSH, bytes(1000), end=False)


class Echo:
    """The honest peer of the job: pushes, and gets back what it pushed."""

    def __init__(self, network: Network, worker: str) -> None:
        self.network = network
        self.worker = worker
        self._send, self._receive = trio.open_memory_channel[bytes](8)
        network.handle_stream(PUSH, self._take)

    async def _take(self, _: str, stream: Stream) -> None:
        await self._send.send(await stream.read_to_end(1 << 24))

    async def round(self, data: bytes) -> None:
        """Push, and await the echo, which must come in time."""
        with trio.fail_after(ANSWER_S):
            stream = await self.network.open_stream(self.worker, PUSH)
            await stream.send_all(data)
            await stream.send_eof()
            assert await self._receive.receive() == data


async def strangers(pki: Pki, address: str) -> None:
    """Connections without a certificate, or with one of another network."""
    _, _, host, _, port = address.split("/")[:5]
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000, b"\x13/multistream/1.0.0\n\xff\xff\xff\xff", b""):
        stream = await trio.open_tcp_stream(host, int(port))
        with suppress(trio.BrokenResourceError):
            await stream.send_all(garbage)
        await stream.aclose()
    async with node(pki, "stranger") as network:
        with pytest.raises(NetworkError):
            await network.dial(address)


async def honest_job(s: Stage, echo: Network, named: list[str]) -> tuple[Lease, list[Any]]:
    """Have a job run that echoes; returns its lease and the list that its progress will be added to."""
    (s.node.directory / "executor.py").write_text(HONEST.replace("PEER", repr(echo.peer_id)))
    reports: list[Any] = []

    async def progress(_: str, report: ReportProgress) -> ProgressResponse:
        reports.append(report)
        return ProgressResponse(type="Ok")

    s.scheduler.network.handle(PROGRESS, progress)
    lease = await small_lease(s.scheduler)
    peers = {"type": "peers", "peers": [echo.peer_id, *named], "strategy": {"type": "All"}}
    spec = train_spec(updates=peers, results=peers)
    assert await s.scheduler.dispatch(lease, spec, uuid4())
    s.scheduler.network._host.nursery.start_soon(s.scheduler.keep, lease)
    return lease, reports


async def small_lease(scheduler: Scheduler) -> Lease:
    """Ask until the worker grants a small lease; it must do so in time."""
    with trio.fail_after(ANSWER_S):
        return await scheduler.lease(SMALL, within_s=2)


async def flood_with_requests(scheduler: Scheduler) -> None:
    """Ask for workers a hundred times a second, and take none."""
    while True:
        for _ in range(10):
            await scheduler.ask(SMALL)
        await trio.sleep(0.1)


async def until_listening(node: NodeProcess) -> str:
    """Return the node's address."""
    with trio.fail_after(ANSWER_S):
        while not (found := [word for word in node.log.split() if "/ip4/127.0.0.1/tcp/" in word and "/p2p/" in word]):  # noqa: ASYNC110 - another process writes it
            await trio.sleep(0.05)
    return found[0].strip('"')


def resident_mib(pid: int) -> float:
    (line,) = [text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


async def test_a_hundred_hostile_peers_harm_neither_a_job_nor_an_honest_scheduler_nor_the_node() -> None:
    pki = Pki()
    failure: BaseException | None = None
    async with (
        gateway(pki) as entry,
        stage(pki, entry, "honest", resources=ROOM, offer=FLEXIBLE, leases={"duration_s": 60}) as s,
        member(pki, "echo", entry) as echo_network,
        member(pki, "flooder", entry) as flooder,
        AsyncExitStack() as networks,
    ):
        hostile = []
        address = await until_listening(s.node)
        for number in range(PEERS):
            network = await networks.enter_async_context(node(pki, f"hostile {number}", listen_addresses=()))
            hostile.append(Attacker(network, address.rpartition("/")[2], address))
        try:
            await under_attack(s, hostile, echo_network, Scheduler(flooder))
        except (Exception, BaseExceptionGroup) as error:  # raised below: here each network would wrap it in a group
            failure = error
    if failure is not None:
        raise failure


async def under_attack(s: Stage, hostile: list[Attacker], echo_network: Network, flooder: Scheduler) -> None:
    """Let all attack in waves while a job goes on; assert that job, scheduler and node are well, and memory steady."""
    blobs, named = random.Random(7), hostile[0]
    lease, reports = await honest_job(s, echo_network, [named.network.peer_id])
    worker = lease.peer_id
    assert worker == named.victim
    echo = Echo(echo_network, worker)
    await echo.round(blobs.randbytes(300_000))

    async def attack(attacker: Attacker, number: int) -> None:
        step = push_as_a_named_peer if attacker is named else ATTACKS[number % len(ATTACKS)]
        with suppress(NetworkError, trio.ClosedResourceError), trio.move_on_after(8):
            await step(attacker)

    async def wave() -> None:
        """Everybody attacks at once, while rounds go on and the honest scheduler asks."""
        async with trio.open_nursery() as nursery:
            for number, attacker in enumerate(hostile):
                nursery.start_soon(attack, attacker, number)
            nursery.start_soon(strangers, Pki(), named.address)
            for _ in range(ROUNDS):
                await echo.round(blobs.randbytes(300_000))
            await small_lease(s.scheduler)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood_with_requests, flooder)
        calm = resident_mib(s.node.pid)
        resident = []
        for _ in range(WAVES):
            await wave()
            resident.append(resident_mib(s.node.pid))
        nursery.cancel_scope.cancel()
    assert (await s.scheduler.network.request(worker, HEALTH, HealthRequest())).healthy
    assert not lease.refused
    assert not lease.lost.is_set()
    with trio.fail_after(ANSWER_S):
        while len(reports) < 1 + WAVES * ROUNDS:  # noqa: ASYNC110
            await trio.sleep(0.05)
    log = s.node.log
    assert "Traceback" not in log
    for complaint in ("malformed /hypha-api", "malformed /hypha-health", "malformed gossip", "violates the muxer"):
        line = next(text for text in log.splitlines() if complaint in text)
        assert any(attacker.network.peer_id in line for attacker in hostile)
    assert len(log.splitlines()) < 100 * PEERS
    assert max(resident) - calm < MAX_GROWTH_MIB, resident
    assert max(resident[WARM_UP_WAVES:]) - max(resident[:WARM_UP_WAVES]) < MAX_LATER_GROWTH_MIB, resident
