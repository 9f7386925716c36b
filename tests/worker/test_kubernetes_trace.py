"""The trace of a job whose bridge and executor run in a pod, across a restart of the node."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID, uuid4

import pytest
import trio

from hypha_contracts.names import TRACE_ANNOTATION
from hypha_messages.api import DataAssignment
from hypha_messages.streams import PULL
from hypha_network.wire.streams import Stream
from support.api_server import ApiServer
from support.cluster_node import Stage, stage
from support.collector import attributes, http_collector
from support.hypha_jobs import Cluster, make_cluster, until
from support.jobs import train_spec
from support.trace_tree import tree

pytestmark = pytest.mark.anyio

EXECUTOR = """
import os, pathlib
from hypha_executor.bridge import Bridge
bridge = Bridge(pathlib.Path(os.environ["SOCKET_PATH"]), pathlib.Path(os.environ["WORK_DIR"]))
with bridge.telemetry.span("batch"):
    bridge.fetch({"type": "scheduler", "peer": os.environ["SCHEDULER"], "dataset": "digits"})
bridge.telemetry.add("hypha.job.cpu.time", 2.5, {"cpu.mode": "user"})
bridge.telemetry.close()
"""
HEADER = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path) -> Cluster:
    return make_cluster(api_server, tmp_path)


def offer_slices(s: Stage) -> None:
    async def send_slice(_peer: str, stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(struct.pack("<Q", len(HEADER)) + HEADER + b"1")

    s.scheduler.network.handle_stream(PULL, send_slice)
    assigned = DataAssignment.model_validate({"data_provider": s.scheduler.network.peer_id, "index": 0})
    s.scheduler._assign_slice = lambda _peer, _dataset: assigned


@asynccontextmanager
async def pod(s: Stage, task_id: UUID) -> AsyncIterator[Callable[[], object]]:
    """Run the bridge of a pod with the trace context of the HyphaJob; yields what runs the executor."""
    token, uid = s.cluster.pod_token("pod")
    made = s.cluster.job(task_id)
    with TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "token").write_text(token)
        job = {"job_id": made["spec"]["jobId"], **made["spec"]["config"]}
        (root / "job.json").write_text(json.dumps(job))
        connector = {"url": f"https://localhost:{s.port}", "peer_id": s.peer_id, "token_file": str(root / "token")}
        config = {
            "job_file": str(root / "job.json"),
            "work_dir": str(root / "work"),
            "state_dir": str(root / "state"),
            "socket": str(root / "work/bridge.sock"),
            "connector": connector,
        }
        environ = {
            **os.environ,
            "TRACEPARENT": made["metadata"]["annotations"][TRACE_ANNOTATION],
            "HYPHA_BRIDGE_CONFIG": json.dumps(config),
            "SOCKET_PATH": str(root / "work/bridge.sock"),
            "WORK_DIR": str(root / "work"),
            "SCHEDULER": s.scheduler.network.peer_id,
        }
        times = [f"2026-01-01T00:00:0{second}Z" for second in range(4)]
        stages = [
            {"name": "pod scheduled", "startTime": times[0], "endTime": times[1]},
            {"name": "image pulled", "startTime": times[2], "endTime": times[3]},
        ]
        s.cluster.say(task_id, "Running", podName="pod", podUid=uid, stages=stages)
        bridge = subprocess.Popen([sys.executable, "-m", "hypha_bridge"], env=environ)  # noqa: ASYNC220
        await until((root / "work/bridge.sock").exists)
        try:
            yield partial(subprocess.run, [sys.executable, "-c", EXECUTOR], env=environ, check=True, timeout=60)
        finally:
            bridge.terminate()
            bridge.wait(60)


async def test_the_spans_of_a_pod_join_those_of_a_node_that_is_restarted_meanwhile(cluster: Cluster) -> None:
    run = "job > lease > dispatch"
    expected = {
        *("job > offer", "job > end", f"{run} > pod scheduled", f"{run} > image pulled", f"{run} > executor started"),
        *(f"{run} > bridge ready", f"{run} > batch > slice > pull slice"),
    }
    with http_collector() as collector:
        environ = {"HYPHA_TELEMETRY_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        async with stage(cluster, lease_s=60.0, environ={**environ, "OTEL_METRIC_EXPORT_INTERVAL": "500"}) as s:
            offer_slices(s)
            lease = await s.scheduler.lease()
            task_id = uuid4()
            spec = train_spec(data={"type": "scheduler", "peer": s.scheduler.network.peer_id, "dataset": "digits"})
            assert await s.scheduler.dispatch(lease, spec, task_id)
            await until(lambda: "dispatch" in tree(collector).spans)
            async with pod(s, task_id) as run_executor:
                await until(
                    lambda: {"image pulled", "executor started", "bridge ready"} <= tree(collector).spans.keys()
                )
                s.restart(forgetful=False)
                await trio.to_thread.run_sync(run_executor)
                await until(lambda: {"pull slice", "slice", "batch"} <= tree(collector).spans.keys())
            cpu = "hypha.job.cpu.time"
            await until(lambda: collector.value(cpu, task=str(task_id)))
            s.cluster.say(task_id, "Succeeded")
            await until(lambda: expected <= tree(collector).paths)
    found = tree(collector)
    assert len({span.trace_id for span in found.spans.values()}) == 1
    assert attributes(found.spans["job"].attributes)["task"] == str(task_id)
    assert collector.value(cpu, task=str(task_id)) == 2.5
