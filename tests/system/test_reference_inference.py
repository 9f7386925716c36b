"""Inference beside the reference implementation's gateway, data node, workers and scheduler, which run a job, too."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from benchmarks.nodes import Node, Stage, open_stage
from hypha_devnet.config import InferenceJob, NodeConfig
from hypha_devnet.roles.inference import InferenceScheduler
from hypha_devnet.roles.node import join
from hypha_messages.advertisement import TOPIC
from hypha_messages.health import HEALTH, HealthRequest
from hypha_network.errors import RemoteRefused
from hypha_network.network import Network
from support.recorded_events import Recorded
from support.sums import EXAMPLE, EXPECTED, sums, write_slices

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif("HYPHA_BIN" not in os.environ, reason="HYPHA_BIN is not set"),
]
DEADLINE_S = 90.0
COMPLAINT = re.compile(r"^.*\b(?:WARN|ERROR|panicked)\b.*$", re.MULTILINE)


def training_job() -> dict[str, Any]:
    """A job whose trainer never ends its first round."""
    needed = {"cpu": 1.0, "memory": 1.0, "storage": 1.0, "gpu": 1.0}
    return {
        "type": "diloco",
        "dataset": {"dataset": "digits"},
        "model": {
            "type": "image-classification",
            "repository": "a/b",
            "filenames": ["config.json"],
            "input_names": ["x"],
        },
        "rounds": {"update_rounds": 1, "avg_samples_between_updates": 8, "max_batch_size": 1},
        "inner_optimizer": {"learning-rate": 0.1},
        "outer_optimizer": {"learning-rate": 0.7, "momentum": 0.9},
        "resources": {"num_workers": 1, "worker": needed, "parameter_server": {**needed, "gpu": 0.0}},
    }


def start_reference_worker(stage: Stage, name: str, executor: dict[str, Any]) -> Node:
    (stage.directory / f"work-{name}").mkdir()
    config = {
        **stage.common(name),
        "work_dir": str(stage.directory / f"work-{name}"),
        "resources": {"cpu": 4, "memory": 16, "storage": 64, "gpu": 8},
        "offer": {"price": 1.0, "floor": 1.0, "strategy": {"type": "whole"}},
        "executors": [executor],
    }
    return stage.start(name, "rust", "worker", config)


def start_inference_worker(stage: Stage, name: str) -> Node:
    args = [str(EXAMPLE), "--job-file", "{JOB_FILE}"]
    config = {
        **stage.common(name),
        "work_dir": str(stage.directory / f"work-{name}"),
        "resources": {"cpu": 1, "memory": 2, "storage": 2, "gpu": 0},
        "executors": [
            {"class": "inference", "name": "test", "runtime": "process", "cmd": sys.executable, "args": args},
        ],
    }
    return stage.start(name, "ours", "worker", config)


def inference_job(results: Path) -> InferenceJob:
    return InferenceJob.model_validate(
        {
            "type": "inference",
            "executor": "test",
            "model": {"type": "auto", "uri": "http://127.0.0.1/none", "input_names": ["x"]},
            "dataset": {"dataset": "digits"},
            "results": {"directory": str(results)},
            "resources": {"num_workers": 2, "worker": {"cpu": 1.0}},
        }
    )


async def until(condition: Callable[[], bool], *nodes: Node) -> None:
    """Wait for a condition that other processes change."""
    with trio.move_on_after(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - another process changes it
            await trio.sleep(0.1)
    assert condition(), "\n".join(node.last_lines() for node in nodes)


def arrived(channel: trio.MemoryReceiveChannel[Any]) -> Iterator[Any]:
    """Yield what a channel holds."""
    with suppress(trio.WouldBlock):
        while True:
            yield channel.receive_nowait()


def text_of(node: Node) -> str:
    return node.log.read_text(errors="replace")


async def health(network: Network, node: Node) -> str:
    """What a node answers when it is asked for its health."""
    try:
        answer = await network.request(node.peer_id, HEALTH, HealthRequest(), timeout_s=10)
    except RemoteRefused:
        return "refused"
    return "healthy" if answer.healthy else "not healthy"


@pytest.mark.timeout(240)
async def test_reference_nodes_run_on_undisturbed_while_an_inference_job_runs_beside_them() -> None:
    async with open_stage() as (stage, watcher):
        write_slices(stage.directory / "digits")
        idle = {"class": "train", "name": "diloco-transformer", "runtime": "process", "cmd": "sleep", "args": ["600"]}
        server = {"class": "aggregate", "name": "parameter-server", "runtime": "parameter-server"}
        gateway, data = stage.nodes[0], stage.start_data_node("data", "rust", stage.directory / "digits")
        workers = [start_reference_worker(stage, "trainer", idle), start_reference_worker(stage, "server", server)]
        network = watcher.network
        await until(lambda: {node.peer_id for node in workers} <= set(network.subscribers(TOPIC)), *workers)
        config = {**stage.common("training"), "scheduler": {"job": training_job()}}
        training = stage.start("training", "rust", "scheduler", config)
        await until(lambda: all(list(stage.directory.glob(f"work-{n.name}/hypha-*")) for n in workers), training)
        reference = [gateway, data, *workers, training]

        def connected() -> set[str]:
            return {node.name for node in reference if node.peer_id in network.connected_peers()}

        await until(lambda: len(connected()) == len(reference), *reference)
        healths = {node.name: await health(network, node) for node in reference}
        before, renewals = (
            {node.name: len(text_of(node)) for node in reference},
            text_of(training).count("Lease renewed"),
        )

        own = [start_inference_worker(stage, name) for name in ("a", "b")]
        lost: list[str] = []

        async def watch() -> None:
            while True:
                await network.wait_until(lambda: connected() != {node.name for node in reference})
                lost.extend({node.name for node in reference} - connected())

        results = stage.directory / "results"
        requests = network.subscribe(TOPIC, bytes)
        async with trio.open_nursery() as nursery, join(NodeConfig.model_validate(stage.common("inference"))) as member:
            nursery.start_soon(watch)
            events = Recorded()
            with trio.fail_after(DEADLINE_S):
                await InferenceScheduler(member, inference_job(results), events).run()
            await until(lambda: text_of(training).count("Lease renewed") > renewals, training)
            sources = {gossip.source for gossip in arrived(requests)}
            assert member.peer_id not in sources, "a request for inference was published on the reference's topic"
            nursery.cancel_scope.cancel()

        # The reference's data node numbers slices in the order of its directory.
        assert sorted(sums(results).values()) == sorted(EXPECTED.values())
        assert {event["peer"] for event in events.of("dispatched")} <= {node.peer_id for node in own}
        assert lost == []
        for node in reference:
            node.check()
            assert await health(network, node) == healths[node.name]
            assert COMPLAINT.findall(text_of(node)[before[node.name] :]) == []
        assert {node.peer_id for node in workers} <= set(network.subscribers(TOPIC))
