"""The example executors, and the one in docs/executors.md, as processes beside a real bridge."""

import asyncio
import json
import re
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest

from hypha_bridge.server import BridgeServer
from hypha_contracts.bridge_config import BridgeConfig
from hypha_executor.labels import Labels, parse_labels
from hypha_executor.safetensors import read_header, write_file
from support.bridge_node import FakeNode

from .conftest import OTHER, PROVIDER, SERVER, job, until

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "executor.py"
INFERENCE = Path(__file__).parents[2] / "examples" / "inference.py"


def file_of(path: Path, name: str, *values: float) -> bytes:
    content = array("f", values)
    write_file(path, [(name, "F32", (len(content),))], [memoryview(content).cast("B")], {})
    return path.read_bytes()


async def test_the_example_executor_learns_the_mean_of_two_slices(
    server: BridgeServer, node: FakeNode, config: BridgeConfig, tmp_path: Path
) -> None:
    file = tmp_path / "file.safetensors"
    for index, values in enumerate([(1, 2, 3), (4, 10)]):
        node.slices["digits", index] = file_of(file, "x", *values)
        node.assign("digits", PROVIDER, index)
    node.answers.put({"type": "ScheduleUpdate", "counter": 1})
    command = [sys.executable, EXAMPLE, "--socket", config.socket, "--work-dir", config.work_dir]
    executor = await asyncio.create_subprocess_exec(
        *command, "--job", json.dumps(job()), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    await until(lambda: node.received.qsize() == 2 or executor.returncode is not None)
    _, pseudo_gradient = node.received.get_nowait()
    file.write_bytes(pseudo_gradient)
    header = read_header(file)
    assert parse_labels(header.metadata) == Labels(job()["job_id"], round=1, samples=5)
    assert array("f", pseudo_gradient[header.tensors["mean"].offset :]).tolist() == [4.0]
    node.answers.put({"type": "Done"})
    node.incoming.put((SERVER, file_of(file, "mean", 3.5)))
    output, errors = await asyncio.wait_for(executor.communicate(), 20)
    assert (executor.returncode, output) == (0, b"3.5\n"), errors
    assert node.reported == [{"status": {"batch_size": 3}}, {"status": {"batch_size": 2}}, "update", "update-received"]


async def test_the_executor_of_the_page_counts_samples_until_the_job_is_done(
    server: BridgeServer, node: FakeNode, config: BridgeConfig, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "executors.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (script := tmp_path / "counting.py").write_text(program)
    file = tmp_path / "file.safetensors"
    for index, values in enumerate([(1, 2, 3), (4, 10)]):
        node.slices["digits", index] = file_of(file, "x", *values)
        node.assign("digits", PROVIDER, index)
    for answer in ("Continue", "Done"):
        node.answers.put({"type": answer})
    command = [sys.executable, script, "--socket", config.socket, "--work-dir", config.work_dir]
    executor = await asyncio.create_subprocess_exec(
        *command, "--job", json.dumps(job()), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await asyncio.wait_for(executor.communicate(), 20)
    assert (executor.returncode, output) == (0, b"5\n"), errors
    assert node.reported == [{"status": {"batch_size": 3}}, {"status": {"batch_size": 2}}]


class TestInference:
    @pytest.fixture
    def spec(self) -> dict[str, Any]:
        training = job()
        kept = {key: training["executor"]["config"][key] for key in ("model", "data", "results")}
        executor = {"class": "inference", "descriptor": {"name": "test"}, "config": {**kept, "batch_size": 8}}
        return training | {"executor": executor}

    @pytest.fixture
    def config(self, config: BridgeConfig, spec: dict[str, Any]) -> BridgeConfig:
        config.job_file.write_text(json.dumps(spec))
        return config

    async def test_the_example_executor_predicts_slices_until_the_scheduler_has_no_more(
        self, server: BridgeServer, node: FakeNode, config: BridgeConfig, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        file = tmp_path / "file.safetensors"
        for index, values in ((7, (1, 2, 3)), (3, (4, 10))):
            node.slices["digits", index] = file_of(file, "x", *values)
            node.assign("digits", PROVIDER, index)
        command = [sys.executable, INFERENCE, "--socket", config.socket, "--work-dir", config.work_dir]
        executor = await asyncio.create_subprocess_exec(
            *command, "--job", json.dumps(spec), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(executor.communicate(), 30)
        assert (executor.returncode, output) == (0, b"2 slices\n"), errors
        received = [node.received.get_nowait() for _ in range(4)]
        for number in (0, 2):
            assert {peer for peer, _ in received[number : number + 2]} == {SERVER, OTHER}
        for (_, predictions), index, sums in zip(received[::2], (7, 3), ([1.0, 2.0, 3.0], [4.0, 10.0]), strict=True):
            file.write_bytes(predictions)
            header = read_header(file)
            assert parse_labels(header.metadata) == Labels(
                spec["job_id"], samples=len(sums), dataset="digits", slice_index=index
            )
            assert array("f", predictions[header.tensors["sum"].offset :]).tolist() == sums
        assert node.reported == [
            {"status": {"batch_size": 3}},
            {"predicted": {"index": 7, "samples": 3}},
            {"status": {"batch_size": 2}},
            {"predicted": {"index": 3, "samples": 2}},
        ]
