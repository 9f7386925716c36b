"""A node with many leases and jobs, for its status page: its parts are real, and what happened to it is made up."""

import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import trio

from benchmarks.nodes import job_of, train_config
from hypha_contracts.node_config import NodeConfig
from hypha_devnet.certs import Credential, create_node, create_organisation, create_root
from hypha_messages.advertisement import RequestWorker, WorkerSpec
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.progress import Metrics, Progress, Status
from hypha_messages.types import Resources, SystemTime, peer_id_from_ed25519
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_worker.job import Job
from hypha_worker.job_history import JobHistory
from hypha_worker.market.arbiter import Arbiter
from hypha_worker.market.ledger import Lease, Ledger
from hypha_worker.market.settings import EVERYTHING, settings_of
from hypha_worker.market.starts import StartRecord
from hypha_worker.market.waiting import Waiting, WaitingRequests
from hypha_worker.status.board import Board
from hypha_worker.telemetry import Telemetry

EACH = Resources(cpu=1, memory=4, storage=20)
LEASE_S = 45.0
ROUND_S = 40.0
BATCHES = 8
"""Batches of a job in a round."""
TRAIN, AGGREGATE = "diloco-transformer", "aggregate"


@dataclass
class Past:
    """A clock that a story sets back. It runs on in real time."""

    offset_s: float = 0.0

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return time.time() + self.offset_s

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic() + self.offset_s


class BusyNode:
    """The parts of a node behind its status page, and the board that shows them.

    Args:
        network: of the node.
        schedulers: the peer ids of those that use it.
        leases: how many of them there may be at once.
    """

    def __init__(self, network: Network, schedulers: Sequence[str], leases: int) -> None:
        self.past = Past()
        self.config = _config(leases)
        settings = settings_of(self.config, EVERYTHING)
        self.ledger = Ledger(settings.rules, self.past.wall)
        self.waiting = WaitingRequests(200, 0.2, 100)
        self.arbiter = Arbiter(
            network,
            self.ledger,
            settings,
            Telemetry(),
            starts=StartRecord(),
            waiting=self.waiting,
            requests_per_s=1000,
            wall_clock=self.past.wall,
        )
        self.history = JobHistory(self.past.monotonic, self.past.wall)
        self.board = Board(
            self.config,
            network,
            ledger=self.ledger,
            arbiter=self.arbiter,
            waiting=self.waiting,
            history=self.history,
            clock=self.past.monotonic,
        )
        self._schedulers = schedulers
        self._random = random.Random(1)

    def uuid(self) -> UUID:
        """Return the next id."""
        return UUID(bytes=self._random.randbytes(16), version=4)

    def lease(self, number: int, executor: str = TRAIN, *, seconds: float = 0.0) -> None:
        """Grant a lease to one of the schedulers, which has held it for so many seconds."""
        self.past.offset_s = -seconds
        for _ in self._rounds(self._grant(number, executor), seconds):
            pass
        self.past.offset_s = 0.0

    def _rounds(self, lease: Lease, seconds: float) -> Iterator[int]:
        """Yield the number of each round while time passes and the scheduler renews its lease."""
        for number in range(int(seconds / ROUND_S)):
            self.past.offset_s += ROUND_S
            self.ledger.renew(lease.id, lease.scheduler)
            yield number

    def _grant(self, number: int, executor: str) -> Lease:
        scheduler, price = self._schedulers[number % len(self._schedulers)], 100.0 + 5 * (number % 7)
        asked = request(self.uuid(), executor, price, self.past.wall())
        self.arbiter.recent.on_waiting(scheduler, asked, self.past.wall())
        lease = self.ledger.offer(scheduler, asked.id, asked.spec.executor, EACH, price=price)
        assert lease is not None
        self.arbiter.recent.on_offered(lease)
        self.ledger.renew(lease.id, scheduler)
        return lease

    def job(
        self, number: int, executor: str = TRAIN, *, seconds: float, ended_s: float | None = None, failure: str = ""
    ) -> None:
        """Run a job of one of the schedulers.

        Args:
            number: chooses the scheduler and the price.
            executor: of the job.
            seconds: how long it runs.
            ended_s: how long ago it ended. None: it still runs.
            failure: why it failed, if it did.
        """
        self.past.offset_s = -seconds - (ended_s or 0.0)
        lease, task_id = self._grant(number, executor), self.uuid()
        spec = job_of(self.uuid(), executor, _job_config(executor, lease.scheduler))
        self.ledger.assign(lease.scheduler, lease.executors[0], task_id)
        began = self.past.wall()
        self.history.add(Job(task_id, lease.id, lease.scheduler, spec, EACH, lease.deadline, began=began))
        self.history.on_started(task_id)
        self.ledger.record_started(task_id)
        rate = self._random.uniform(0.6, 1.4)
        for round_number in self._rounds(lease, seconds):
            self._round(task_id, round_number, executor, rate)
        if ended_s is not None:
            self.past.offset_s = -ended_s
            self.ledger.end(task_id, "Failed" if failure else "Finished")
            self.history.on_end(task_id, failure or None)
        self.past.offset_s = 0.0

    def _round(self, task_id: UUID, number: int, executor: str, rate: float) -> None:
        for _ in range(BATCHES):
            self.history.on_report(task_id, Progress(status=Status(batch_size=16)))
        noise = self._random.uniform(-0.08, 0.08)
        loss = 0.9 + 2.4 * math.exp(-rate * number / 25) + noise
        values = {} if executor == AGGREGATE else {"loss": loss, "learning_rate": 0.001}
        self.history.on_report(task_id, Progress(metrics=Metrics(round=number + 1, metrics=values)))

    def ask(self, scheduler: str, bid: float, executor: str = TRAIN, seconds_ago: float = 0.0) -> None:
        """Let a scheduler ask for a worker. It gets no offer, because its request is refused or must wait."""
        now = self.past.wall() - seconds_ago
        asked = request(self.uuid(), executor, bid, now)
        if refusal := self.arbiter.policy.refusal(asked, now):
            self.arbiter.recent.on_refused(scheduler, asked, refusal, now)
        else:
            self.waiting.add(Waiting(scheduler, asked, self.past.monotonic()))
            self.arbiter.recent.on_waiting(scheduler, asked, now)


def request(id_: UUID, executor: str, bid: float, now: float) -> RequestWorker:
    """Return a request for one worker."""
    descriptor = ExecutorDescriptor(class_="aggregate" if executor == AGGREGATE else "train", name=executor)
    spec = WorkerSpec(resources=EACH, executor=[descriptor])
    return RequestWorker(id=id_, spec=spec, timeout=SystemTime.from_timestamp(now + 10), bid=bid)


def _job_config(executor: str, scheduler: str) -> dict[str, Any]:
    config = train_config({"type": "scheduler", "peer": scheduler, "dataset": "wikipedia"}, scheduler)
    return config | {"optimizer": {"learning-rate": 0.7, "momentum": 0.9}} if executor == AGGREGATE else config


def scheduler_ids(number: int) -> list[str]:
    """Return peer ids of schedulers that are not there."""
    generator = random.Random(2)
    return [peer_id_from_ed25519(generator.randbytes(32)) for _ in range(number)]


def _config(leases: int) -> NodeConfig:
    executors = [
        {"class": "train", "name": TRAIN, "runtime": "process", "cmd": "python"},
        {"class": "aggregate", "name": AGGREGATE, "runtime": "parameter-server"},
    ]
    return NodeConfig.model_validate(
        {
            **dict.fromkeys(("cert_pem", "key_pem", "trust_pem", "work_dir"), Path("none")),
            "gateway_addresses": ["/ip4/127.0.0.1/tcp/1"],
            "resources": {name: 1.25 * leases * amount for name, amount in EACH if amount},
            "offer": {"strategy": "flexible", "minimum": EACH.model_dump(exclude={"gpu"})},
            "leases": {"duration_s": LEASE_S, "max_live": max(4, 2 * leases)},
            "executors": executors,
        }
    )


@asynccontextmanager
async def open_networks(*peers: str) -> AsyncIterator[tuple[Network, list[str]]]:
    """Open the network of a node with a gateway and some peers; return it and the peer ids of these."""
    authority = create_organisation(create_root(), "Benchmark")
    listening = NetworkConfig(listen_addresses=("/ip4/127.0.0.1/tcp/0",), exclude_cidr=())
    serving = replace(listening, kademlia_server=True, relay_server=True)
    async with open_network(_identity(authority, "gateway"), serving) as gateway:
        both = (*listening.listen_addresses, "/ip4/127.0.0.1/udp/0/quic-v1")
        joined = replace(listening, listen_addresses=both, gateways=(gateway.addresses()[0],))
        async with open_network(_identity(authority, "worker"), joined) as network, trio.open_nursery() as nursery:
            await network.wait_ready()
            for number, name in enumerate(peers):
                nursery.start_soon(_join, _identity(authority, name), network.addresses()[number % 2])
            await network.wait_until(lambda: len(network.connected_peers()) == 1 + len(peers))
            others = [peer for peer in network.connected_peers() if peer != gateway.peer_id]
            yield network, others
            nursery.cancel_scope.cancel()


def _identity(authority: Credential, name: str) -> Identity:
    credential = create_node(authority, name)
    return Identity.from_pem(credential.cert_pem, credential.key_pem, credential.trust_pem)


async def _join(identity: Identity, address: str) -> None:
    async with open_network(identity, NetworkConfig(listen_addresses=(), exclude_cidr=())) as network:
        await network.dial(address)
        await trio.sleep_forever()
