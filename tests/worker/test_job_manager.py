"""Jobs as a node runs them: real networks, real bridges, real processes."""

import json
import os
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from hypha_messages.api import API, DataAssignment
from hypha_messages.job import JobSpec
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.streams import PULL, PUSH
from hypha_messages.types import Message, Resources
from hypha_network.changes import Changes
from hypha_network.errors import StreamReset
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from hypha_telemetry import node_metrics
from hypha_worker.connector.http_server import listen_unix, serve_unix
from hypha_worker.job import Failed, Finished, JobEvent, LaunchError, Started
from hypha_worker.job_manager import JobManager, open_job_manager
from hypha_worker.market.ledger import Lease
from hypha_worker.runtimes.process import launch
from hypha_worker.runtimes.process.launch import ProcessConfig
from hypha_worker.runtimes.process.runtime import open_process_runtime
from hypha_worker.runtimes.protocol import Serve
from hypha_worker.telemetry import Telemetry
from support import jobs
from support.certs import Pki
from support.networks import direct_address, node
from support.recorded_metrics import RecordedMetrics

pytestmark = pytest.mark.anyio

PATIENCE_S = 60

CLIENT = """
import http.client, json, pathlib, socket, sys

class Bridge(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])

def call(path, body):
    bridge = Bridge("bridge")
    bridge.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = bridge.getresponse()
    assert response.status == 200, (path, response.status, response.read())
    return response

def receive(resource):
    for line in call("/resources/receive", {"resource": resource}):
        if line.startswith(b"data: "):
            return json.loads(line[6:])

job = json.loads(pathlib.Path(sys.argv[3]).read_text())
config = job["executor"]["config"]
"""

TRAINER = (
    CLIENT
    + """
(slice,) = json.load(call("/resources/fetch", config["data"]))
assert pathlib.Path(slice["path"]).stat().st_size == slice["size"]
call("/status/send", {"status": {"batch_size": config["batch_size"]}}).read()
pathlib.Path("update").write_bytes(pathlib.Path(slice["path"]).read_bytes())
call("/resources/send", {"resource": config["updates"], "path": "update"}).read()
merged = receive(config["results"])
assert merged["from_peer"] in config["results"]["peers"]
assert pathlib.Path(merged["path"]).read_bytes() == pathlib.Path("update").read_bytes()
assert json.load(call("/status/send", "update-received"))["type"] == "Done"
"""
)

PARAMETER_SERVER = (
    CLIENT
    + """
update = receive(config["updates"])
call("/resources/send", {"resource": config["results"], "path": update["path"]}).read()
"""
)


def tensors(job_id: UUID, size_bytes: int = 1_000_000) -> bytes:
    """A SafeTensors file that is labelled for a job."""
    entry = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}
    header = json.dumps({"__metadata__": {"job_id": str(job_id)}, "weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(size_bytes)


@dataclass
class Worker:
    """A node's jobs."""

    network: Network
    jobs: JobManager
    work_dir: Path
    events: list[JobEvent] = field(default_factory=list)
    changes: Changes = field(default_factory=Changes)

    async def take_events(self) -> None:
        async for event in self.jobs.events:
            self.events.append(event)
            self.changes.notify()

    async def start(self, spec: JobSpec, scheduler: str) -> UUID:
        task_id = uuid4()
        lease = Lease(
            id=uuid4(),
            scheduler=scheduler,
            request_id=uuid4(),
            executors=(spec.descriptor,),
            resources=Resources(cpu=2, memory=2, storage=1),
            deadline=time.time() + 60,
            state="held",
        )
        await self.jobs.start(lease, task_id, spec, scheduler)
        return task_id

    async def end_of(self, task_id: UUID) -> JobEvent:
        while True:
            for event in self.events:
                if event.task_id == task_id and not isinstance(event, Started):
                    return event
            await self.changes.wait()


def serve(path: Path) -> Serve:
    return partial(serve_unix, listen_unix(path))


@asynccontextmanager
async def worker(
    pki: Pki, name: str, config: ProcessConfig, telemetry: Telemetry | None = None
) -> AsyncIterator[Worker]:
    """A node that runs jobs of one executor with the real bridge."""
    async with (
        open_process_runtime(config) as runtime,
        node(pki, name) as network,
        open_job_manager(runtime, network, serve(config.connector_socket), telemetry or Telemetry()) as manager,
        trio.open_nursery() as nursery,
    ):
        made = Worker(network, manager, config.work_dir)
        await manager.adopt()
        nursery.start_soon(made.take_events)
        yield made
        nursery.cancel_scope.cancel()


def config(work_dir: Path, executor: str, **changes: Any) -> ProcessConfig:
    made = jobs.config(work_dir, executor, **changes)
    return ProcessConfig(made.work_dir, made.executors, launch.BRIDGE, kill_after_s=2)


class Scheduler:
    """A scheduler that has one slice, and says when training is done."""

    def __init__(self, network: Network, data: bytes) -> None:
        self.network = network
        self.data = data
        self.progress: list[Any] = []
        network.handle(API, self._answer)
        network.handle(PROGRESS, self._take_progress)
        network.handle_stream(PULL, self._send_slice)

    async def _answer(self, _peer: str, _request: Message) -> Message:
        return DataAssignment(data_provider=self.network.peer_id, index=0)

    async def _take_progress(self, _peer: str, report: ReportProgress) -> ProgressResponse:
        self.progress.append(report.progress.model_dump(mode="json"))
        return ProgressResponse(type="Done" if report.progress.stage == "update-received" else "Continue")

    async def _send_slice(self, _peer: str, stream: Stream) -> None:
        await stream.send_all(self.data)


async def test_a_trainer_and_a_parameter_server_exchange_updates_through_their_bridges(work_dir: Path) -> None:
    pki, job_id, metrics = Pki(), uuid4(), RecordedMetrics()
    with trio.fail_after(PATIENCE_S):
        async with (
            node(pki, "scheduler") as network,
            worker(pki, "trainer", config(work_dir, TRAINER), metrics.telemetry) as trainer,
            worker(pki, "server", config(work_dir / "server", PARAMETER_SERVER)) as server,
        ):
            scheduler = Scheduler(network, tensors(job_id))
            await trainer.network.dial(direct_address(network))
            await trainer.network.dial(direct_address(server.network))
            await server.network.dial(direct_address(network))
            peers = {"type": "peers", "peers": [server.network.peer_id], "strategy": {"type": "All"}}
            data = {"type": "scheduler", "peer": network.peer_id, "dataset": "digits"}
            training = jobs.train_spec(job_id, data=data, updates=peers, results=peers)
            aggregating = jobs.aggregate_spec([trainer.network.peer_id], job_id)
            train = await trainer.start(training, network.peer_id)
            aggregate = await server.start(aggregating, network.peer_id)
            assert await trainer.end_of(train) == Finished(train)
            assert await server.end_of(aggregate) == Finished(aggregate)
            assert scheduler.progress == [{"status": {"batch_size": 8}}, "update-received"]
            assert metrics.of(node_metrics.OUTER_STEP) == {("train/test",): 1}
            assert metrics.of(node_metrics.SLICES)[network.peer_id, "delivered"] >= 1
            contents = {(content, flow) for _, content, flow in metrics.of(node_metrics.TRANSFERRED)}
            assert contents == {("slice", "receive"), ("push", "transmit"), ("push", "receive")}
            for made in (trainer, server):
                await made.jobs.terminate(train if made is trainer else aggregate, "wait for its record to go")
                assert [path.name for path in made.work_dir.glob("hypha-*")] == []
                assert list((made.work_dir / "jobs").iterdir()) == []


async def test_a_job_that_cannot_be_launched_gets_no_pushes(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    pki = Pki()
    with trio.fail_after(PATIENCE_S):
        async with (
            node(pki, "peer") as peer,
            worker(pki, "worker", ProcessConfig(work_dir, {})) as made,
        ):
            await peer.dial(direct_address(made.network))
            others = {"type": "peers", "peers": [peer.peer_id], "strategy": {"type": "All"}}
            with pytest.raises(LaunchError, match="no executor train/test"):
                await made.start(jobs.train_spec(results=others), peer.peer_id)
            stream = await peer.open_stream(made.network.peer_id, PUSH)
            with pytest.raises(StreamReset):
                await stream.receive_some()
            assert f"{peer.peer_id}: refused a push: no job of this worker names it" in caplog.text


async def test_a_job_id_that_is_live_for_another_scheduler_is_refused(work_dir: Path) -> None:
    pki = Pki()
    with trio.fail_after(PATIENCE_S):
        async with worker(pki, "worker", config(work_dir, "import time; time.sleep(100)")) as made:
            spec = jobs.train_spec()
            first = await made.start(spec, jobs.SCHEDULER)
            with pytest.raises(LaunchError, match=f"tasks of job {spec.job_id} run here for another scheduler"):
                await made.start(spec, jobs.STRANGER)
            second = await made.start(spec, jobs.SCHEDULER)
            for task in (first, second):
                await made.jobs.terminate(task, "enough")
                await made.end_of(task)
            last = await made.start(spec, jobs.STRANGER)
            await made.jobs.terminate(last, "enough")


async def test_a_crash_is_reported_with_the_executors_output(work_dir: Path) -> None:
    pki = Pki()
    with trio.fail_after(PATIENCE_S):
        async with worker(pki, "worker", config(work_dir, "raise SystemExit('no such model')")) as made:
            task = await made.start(jobs.train_spec(), jobs.SCHEDULER)
            ended = await made.end_of(task)
            assert ended == Failed(task, "the executor ended: exit code 1", ("no such model",))
