"""A real node whose jobs move data, observed by a real Prometheus and by a real OpenTelemetry collector."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
import trio

from e2e.monitoring import running_collector, running_prometheus
from hypha_devnet.client import Lease
from hypha_devnet.events import Events
from hypha_devnet.ports import free_port
from hypha_devnet.roles.data_node import DataNode
from hypha_messages.api import DataAssignment
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.streams import PULL, PUSH
from hypha_messages.types import Resources
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from hypha_telemetry.catalogue import CATALOGUE
from support.certs import Pki
from support.dashboards import assert_series, dashboard_queries, is_about_resources, is_about_the_operator, scraping
from support.jobs import train_spec
from support.networks import DEADLINE_S, direct_address, gateway, member
from support.node_process import NodeProcess, Scheduler, wanted
from support.waiting import until

pytestmark = pytest.mark.anyio

DATASET = "digits"
EXECUTOR = """
import time
from hypha_executor.arguments import executor_parser, read_job
from hypha_executor.bridge import Bridge
from hypha_executor.incoming import Incoming
from hypha_executor.job import parse_job
from hypha_executor.progress import Progress

options = executor_parser("executor").parse_args([])
bridge, config = Bridge(options.socket, options.work_dir), parse_job(read_job(options), "train").config
incoming = Incoming(bridge, config.node("results").value)
incoming.wait_open()
bridge.send(config.node("updates").value, bridge.fetch(config.node("data").value)[0])
progress = Progress(bridge)
progress.batch_trained(samples=8)
progress.metrics(1, {"loss": 0.5})
progress.update_due()
progress.update_merged()
while bridge.inside(incoming.next().path).stat().st_size > 6000:
    pass
"""


def tensors(size_bytes: int) -> bytes:
    """Return a SafeTensors file with one tensor."""
    header = json.dumps({"pixels": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size_bytes)


END, CONTINUE = tensors(4000), tensors(8000)


class Scene:
    """A node, and a peer that is its scheduler, its data node and the other party of its jobs' pushes."""

    def __init__(self, node: NodeProcess, network: Network) -> None:
        self.node, self.network = node, network
        slices = [node.directory / "0.safetensors"]
        slices[0].write_bytes(tensors(4000))
        self.scheduler = Scheduler(network, lambda *_: DataAssignment(data_provider=network.peer_id, index=0))
        network.handle_stream(PULL, DataNode({DATASET: slices}, Events()).pull)
        self._pushed, self.pushed = trio.open_memory_channel[int](8)
        network.handle_stream(PUSH, self._take)
        network.handle(PROGRESS, self._answer)

    async def _take(self, _: str, stream: Stream) -> None:
        self._pushed.send_nowait(len(await stream.read_to_end(1 << 24)))

    async def _answer(self, _: str, __: ReportProgress) -> ProgressResponse:
        return ProgressResponse(type="Ok")

    async def dispatch(self, lease: Lease) -> bool:
        """Dispatch a job; return whether the node started it."""
        peer = self.network.peer_id
        peers = {"type": "peers", "peers": [peer], "strategy": {"type": "All"}}
        data = {"type": "scheduler", "peer": peer, "dataset": DATASET}
        return await self.scheduler.dispatch(lease, train_spec(data=data, updates=peers, results=peers), uuid4())

    async def push(self, lease: Lease, data: bytes) -> None:
        """Push a file to the job of a lease, once the job has pushed its slice."""
        with trio.fail_after(DEADLINE_S):
            assert await self.pushed.receive() > 4000
            stream = await self.network.open_stream(lease.peer_id, PUSH)
            await stream.send_all(data)
            await stream.send_eof()


@asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[Scene]:
    pki = Pki()
    with TemporaryDirectory() as directory:
        async with gateway(pki) as entry, member(pki, "scheduler", entry) as network:
            settings["leases"] = {"duration_s": 3.0}
            node = NodeProcess(pki, Path(directory), direct_address(entry), "run", **settings)
            node.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "500"
            (node.directory / "executor.py").write_text(EXECUTOR)
            node.start()
            try:
                yield Scene(node, network)
            finally:
                node.close()
                print(node.log)


async def cause_everything(at: Scene, nursery: trio.Nursery) -> None:
    """Have a request refused, a job run to its end, a dispatch refused and a lease expire; then leave a job running."""
    scheduler = at.scheduler
    await scheduler.advertise(wanted(Resources(gpu=99, cpu=1, memory=1, storage=1)))
    await scheduler.lease()  # expires before the next request gets an offer
    for data in (END, CONTINUE):
        lease = await scheduler.lease()
        nursery.start_soon(scheduler.keep, lease)
        assert await at.dispatch(lease)
        assert not await at.dispatch(lease)
        await at.push(lease, data)
        if data == END:
            assert (await scheduler.status()).status.type == "Finished", at.node.log
            lease.abandoned = True


async def test_every_query_of_the_dashboards_about_nodes_returns_a_series(tmp_path: Path) -> None:
    asked = [e for e in dashboard_queries() if not is_about_resources(e) and not is_about_the_operator(e)]
    port = free_port()
    config = scraping("hypha-worker", f"localhost:{port}", namespace="hypha", worker="w")
    with running_prometheus(tmp_path, config) as prometheus:
        async with scene(telemetry_prometheus=str(port)) as at, trio.open_nursery() as nursery:
            await cause_everything(at, nursery)
            await trio.to_thread.run_sync(assert_series, prometheus, asked)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("protocol", "address"), [("http/protobuf", "http"), ("grpc", "grpc")], ids=["http", "grpc"])
async def test_a_collector_receives_every_metric_of_a_node_with_its_log_and_trace(
    protocol: str, address: str, tmp_path: Path
) -> None:
    documented = {metric.name for process in ("node", "node and operator") for metric in CATALOGUE[process]}
    with running_collector(tmp_path) as collector:
        settings = {"telemetry_endpoint": getattr(collector, address), "telemetry_protocol": protocol}
        async with scene(**settings) as at, trio.open_nursery() as nursery:
            await cause_everything(at, nursery)
            with trio.move_on_after(DEADLINE_S):
                while documented - {metric["name"] for metric in collector.metrics()}:  # noqa: ASYNC110
                    await trio.sleep(0.2)
            received = {metric["name"] for metric in collector.metrics()}
            assert documented <= received <= documented | {metric.name for metric in CATALOGUE["job"]}
            at.node.signal(signal.SIGTERM)
            assert await at.node.ended() == 0
            nursery.cancel_scope.cancel()
        until(lambda: "job" in {span["name"] for span in collector.spans()})
        until(lambda: any("no more offers" in record["body"]["stringValue"] for record in collector.logs()))
        names = {item["resource"]["service.name"] for item in (*collector.metrics(), *collector.logs())}
        assert names == {"hypha-worker"}
