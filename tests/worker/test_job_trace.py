"""One trace for each job: spans of node, bridge and executor in one tree."""

import json
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from hypha_messages.api import DataAssignment
from hypha_messages.streams import PULL, PUSH
from hypha_network.network import Network
from hypha_network.wire.streams import Stream
from support.certs import Pki
from support.collector import Collector, attributes, http_collector
from support.jobs import train_spec
from support.networks import DEADLINE_S, direct_address, gateway, member
from support.node_process import NodeProcess, Scheduler
from support.trace_tree import tree

pytestmark = pytest.mark.anyio

EXECUTOR = """
import os, pathlib, sys
from hypha_executor.bridge import Bridge
from hypha_executor.incoming import Incoming
peer, work_dir = os.environ["SCHEDULER"], pathlib.Path(os.environ["WORK_DIR"])
bridge = Bridge(pathlib.Path(os.environ["SOCKET_PATH"]), work_dir)
peers = {"type": "peers", "peers": [peer], "strategy": {"type": "All"}}
incoming = Incoming(bridge, peers)
incoming.wait_open()
with bridge.telemetry.span("batch", {"samples": 8}):
    (slice_,) = bridge.fetch({"type": "scheduler", "peer": peer, "dataset": "digits"})
with bridge.telemetry.span("pseudo-gradient sent"):
    bridge.send(peers, slice_)
with bridge.telemetry.span("update received"):
    assert incoming.next(60)
bridge.telemetry.close()
"""
HOSTILE = """
import os, httpx, time
client = httpx.Client(transport=httpx.HTTPTransport(uds=os.environ["SOCKET_PATH"]), base_url="http://bridge")
version, trace, parent, flags = os.environ["TRACEPARENT"].split("-")
now = time.time_ns()
span = {"name": "flood", "span_id": "12" * 8, "parent_id": parent, "start_ns": now, "end_ns": now, "attributes": {}}
bad = [span | {"name": "bad", **change} for change in (
    {"start_ns": now - 10**15}, {"end_ns": now + 10**15}, {"attributes": {"a": "x" * 201}},
    {"attributes": {f"k{n}": n for n in range(17)}},
)]
label = {"name": "hypha.job.transfer", "value": 1.0, "increase": True, "attributes": {"any": "label"}}
foreign = {"trace_id": "ef" * 16, "spans": [span | {"name": "foreign"}]}
flood = {"trace_id": trace, "spans": [*bad, *[span] * 50], "metrics": [label]}
for _ in range(100):
    assert client.post("/telemetry", json=foreign).is_success
    assert client.post("/telemetry", json=flood).is_success
content = '{"trace_id": "%s", "spans": [{"attributes": {"a": NaN}}], "metrics": [{"name": "x", "value": NaN}]}' % trace
assert client.post("/telemetry", content=content, headers={"Content-Type": "application/json"}).status_code < 500
time.sleep(2)
"""
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
SLICE = struct.pack("<Q", len(HEADER)) + HEADER + b"1"


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@asynccontextmanager
async def job_with_a_slice(pki: Pki, executor: str, **settings: Any) -> AsyncIterator[tuple[NodeProcess, UUID]]:
    """Run one job to its end. Its scheduler also provides its only slice, and sends pushes back."""
    async with gateway(pki) as entry, member(pki, "scheduler", entry) as network:
        with TemporaryDirectory() as directory:
            settings |= {"leases": {"duration_s": 120}, "jobs": {"read_ahead": 0}}
            node = NodeProcess(pki, Path(directory), direct_address(entry), "run", **settings)
            (Path(directory) / "executor.py").write_text(executor)
            node.config.write_text(
                node.config.read_text() + f"\nenv = {{ SCHEDULER = {json.dumps(network.peer_id)} }}\n"
            )
            scheduler = slice_scheduler(network)
            node.environ = {"OTEL_BSP_SCHEDULE_DELAY": "200", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
            node.start()
            try:
                lease = await scheduler.lease()
                task_id = uuid4()
                data = {"type": "scheduler", "peer": network.peer_id, "dataset": "digits"}
                peers = {"type": "peers", "peers": [network.peer_id], "strategy": {"type": "All"}}
                spec = train_spec(data=data, updates=peers, results=peers)
                assert await scheduler.dispatch(lease, spec, task_id)
                assert (await scheduler.status()).status.type == "Finished", node.log
                yield node, task_id
            finally:
                node.close()


def slice_scheduler(network: Network) -> Scheduler:
    async def send_slice(_peer: str, stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(SLICE)

    async def send_back(peer: str, stream: Stream) -> None:
        data = await stream.read_to_end(2**20)
        update = await network.open_stream(peer, PUSH)
        await update.send_all(data)
        await update.send_eof()
        await update.receive_some()
        await update.aclose()

    network.handle_stream(PULL, send_slice)
    network.handle_stream(PUSH, send_back)
    scheduler = Scheduler(network)
    assigned = DataAssignment.model_validate({"data_provider": network.peer_id, "index": 0})
    scheduler._assign_slice = lambda _peer, _dataset: assigned
    return scheduler


def transferred(collector: Collector) -> dict[str, float]:
    """Return what a job's bridge reports that it exchanged with peers, by direction."""
    points = collector.points("hypha.job.transfer")
    return {dict(found)["network.io.direction"]: value for found, value in points.items()}


def starts(collector: Collector, task_id: UUID) -> list[Any]:
    """Return the records of the log that say that a task runs."""
    return [record for record in collector.logs if f"task {task_id}: runs" in record.body.string_value]


async def test_the_spans_of_node_bridge_and_executor_form_one_tree(pki: Pki) -> None:
    with http_collector() as collector:
        async with job_with_a_slice(pki, EXECUTOR, telemetry_endpoint=collector.endpoint) as (_, task_id):
            with trio.move_on_after(DEADLINE_S):
                wanted = {"end", "slice", "executor started", "deliver push", "push received"}
                while not (  # noqa: ASYNC110
                    wanted <= tree(collector).spans.keys() and transferred(collector) and starts(collector, task_id)
                ):
                    await trio.sleep(0.1)
    found = tree(collector)
    run = "job > lease > dispatch"
    expected = {
        *("job", "job > advertisement", "job > evaluation", "job > offer", "job > lease", "job > end"),
        *(run, f"{run} > process started", f"{run} > executor started", f"{run} > bridge ready", f"{run} > batch"),
        *(f"{run} > batch > slice", f"{run} > batch > slice > ask for slice", f"{run} > batch > slice > pull slice"),
    }
    assert found.paths >= expected
    assert found.path("deliver push") == f"{run} > pseudo-gradient sent > push > deliver push"
    assert found.path("push received") == f"{run} > push received"
    assert transferred(collector) == {"receive": 2 * len(SLICE), "transmit": len(SLICE)}
    assert len({span.trace_id for span in found.spans.values()}) == 1
    assert attributes(found.spans["batch"].attributes)["task"] == str(task_id)
    assert attributes(found.spans["batch"].attributes)["reported_by"] == "job"
    (runs,) = starts(collector, task_id)
    assert (runs.trace_id, runs.span_id) == (found.spans["dispatch"].trace_id, found.spans["dispatch"].span_id)


async def test_a_hostile_job_harms_only_its_own_trace(pki: Pki) -> None:
    with http_collector() as collector:
        async with job_with_a_slice(pki, HOSTILE, telemetry_endpoint=collector.endpoint) as (node, _):
            with trio.move_on_after(DEADLINE_S):
                while not {"end", "flood"} <= tree(collector).spans.keys():  # noqa: ASYNC110
                    await trio.sleep(0.1)
            assert "Traceback" not in node.log
    names = Counter(span.name for span in collector.spans)
    assert 0 < names["flood"] <= 500
    assert names["job"] == names["lease"] == names["end"] == 1
    assert not {"bad", "foreign"} & names.keys()
    assert len({span.trace_id for span in collector.spans}) == 1
    assert transferred(collector) == {}
