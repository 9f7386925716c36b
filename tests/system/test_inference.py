"""Inference over real nodes: workers share a dataset, one of them is killed, and no slice is lost or counted twice."""

import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from hypha_devnet.config import InferenceJob
from hypha_devnet.events import Events
from hypha_devnet.roles.data_node import DataNode
from hypha_devnet.roles.inference import InferenceScheduler
from hypha_messages.advertisement import DECODERS
from hypha_messages.job import DataRecord
from hypha_messages.streams import PULL
from hypha_network.identity import Identity
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.networks import direct_address, gateway, member
from support.node_process import NodeProcess
from support.recorded_events import Recorded
from support.sums import EXAMPLE, EXPECTED, SLICES, sums, write_slices

pytestmark = pytest.mark.anyio
DEADLINE_S = 100.0


class Net:
    """A network with a data node that can leave a peer waiting, and the scheduler's events."""

    def __init__(self, pki: Pki, entrance: Network, directory: Path) -> None:
        self.pki, self.entrance, self.directory = pki, entrance, directory
        self.events = Recorded()
        self.gates: dict[str, tuple[int, trio.Event]] = {}
        """How many pulls of a peer are served before the event, for which further ones wait."""

    async def until(self, event: str, peer: str, count: int) -> None:
        """Wait until the scheduler has emitted so many events about a peer."""
        while len([e for e in self.events.of(event) if e["peer"] == peer]) < count:  # noqa: ASYNC110 - see the deadline
            await trio.sleep(0.01)

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[NodeProcess]:
        directory = self.directory / name
        directory.mkdir()
        node = NodeProcess(
            self.pki,
            directory,
            direct_address(self.entrance),
            "",
            name=name,
            inference=[str(EXAMPLE), "--job-file", "{JOB_FILE}"],
            leases={"duration_s": 6.0},
        )
        paths = [directory / f"{name}-{kind}.pem" for kind in ("cert", "key", "trust")]
        node.peer_id = Identity.load(*paths).peer_id
        node.start()
        try:
            yield node
        finally:
            node.close()


@asynccontextmanager
async def network() -> AsyncIterator[tuple[Net, InferenceScheduler]]:
    pki = Pki()
    # Not pytest's directory: its name is too long for a path of a Unix socket.
    with TemporaryDirectory() as directory:
        async with (
            gateway(pki) as entrance,
            member(pki, "data", entrance) as data,
            member(pki, "scheduler", entrance) as network,
        ):
            for topic, decode in DECODERS.items():
                entrance.subscribe(topic, decode, 1)
            net = Net(pki, entrance, Path(directory))
            pulls = Counter[str]()
            node = DataNode({"digits": write_slices(Path(directory, "digits"))}, Events())

            async def pull(peer: str, stream: Stream) -> None:
                pulls[peer] += 1
                count, event = net.gates[peer]
                if pulls[peer] > count:
                    await event.wait()
                await node.pull(peer, stream)

            data.handle_stream(PULL, pull)
            await data.put_record("digits", DataRecord(num_slices=SLICES).model_dump_json().encode())
            job = InferenceJob.model_validate(
                {
                    "type": "inference",
                    "executor": "test",
                    "model": {"type": "auto", "uri": "http://127.0.0.1/none", "input_names": ["x"]},
                    "dataset": {"dataset": "digits"},
                    "results": {"directory": str(net.directory / "results")},
                    "resources": {"num_workers": 2, "worker": {"cpu": 1.0}},
                }
            )
            yield net, InferenceScheduler(network, job, net.events)


async def test_a_worker_that_is_killed_in_the_middle_loses_no_slice() -> None:
    async with network() as (net, scheduler), net.worker("victim") as victim, net.worker("other") as other:
        killed = trio.Event()
        net.gates = {victim.peer_id: (1, trio.Event()), other.peer_id: (0, killed)}

        async def kill() -> None:
            await net.until("predicted", victim.peer_id, 1)
            await net.until("slice", victim.peer_id, 2)
            victim.signal(signal.SIGKILL)
            killed.set()

        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                await scheduler.run()
        assert sums(net.directory / "results") == EXPECTED
        [lost] = net.events.of("worker_lost")
        assert lost["peer"] == victim.peer_id
        again = {event["index"] for event in net.events.of("slice") if event["peer"] == other.peer_id}
        assert lost["slices"]
        assert set(lost["slices"]) <= again
        assert sorted(event["index"] for event in net.events.of("predicted")) == list(range(SLICES))
