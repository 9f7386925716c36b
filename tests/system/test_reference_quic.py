"""A network of QUIC addresses alone: the reference's gateway, data node and worker, and a worker of ours.

HYPHA_BIN names the directory of the reference's programs.
"""

import json
import os
from hashlib import file_digest
from uuid import uuid4

import pytest

from benchmarks.fetch import make_slice
from benchmarks.nodes import job_of, open_stage, train_config

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif("HYPHA_BIN" not in os.environ, reason="HYPHA_BIN is not set"),
]
SIZE_BYTES = 256 * 1024 * 1024
WORKERS = {"ours": "our-worker", "rust": "reference-worker"}
TRANSFER_S = 240


@pytest.mark.parametrize("transport", ["quic", "tcp"])
async def test_slices_and_pushes_of_both_kinds_of_workers_arrive_unchanged(transport: str) -> None:
    async with open_stage(transport) as (stage, scheduler):
        dataset, meeting = stage.directory / "slices", stage.directory / "meeting"
        dataset.mkdir()
        meeting.mkdir()
        (meeting / "size").write_text(str(SIZE_BYTES))
        make_slice(dataset / "0.safetensors", SIZE_BYTES)
        reports = {name: stage.directory / f"{name}.json" for name in WORKERS.values()}
        nodes = [
            stage.start_worker(name, kind, ["exchange", str(reports[name]), "2", str(meeting)])
            for kind, name in WORKERS.items()
        ]
        data = stage.start_data_node("data", "rust", dataset)
        await scheduler.until_ready(*nodes, data)
        scheduler.provider = data.peer_id
        source = scheduler.source("slices")
        job_id = uuid4()
        for node, other in (nodes, nodes[::-1]):
            await scheduler.hire(node, job_of(job_id, node.name, train_config(source, other.peer_id)))
        found = [json.loads(await scheduler.report(path, *nodes, timeout_s=TRANSFER_S)) for path in reports.values()]
        with (dataset / "0.safetensors").open("rb") as file:
            pulled = file_digest(file, "sha256").hexdigest()
        for steps in found:
            assert len(steps) == 2
            for slice_, sent, received in steps:
                assert slice_ == pulled
                assert received == sent  # all send the same bytes
