"""Our trainer and the stock trainer train a language model together, under both parameter servers.

HYPHA_BIN names the directory of the reference's programs, and HYPHA_STOCK_PYTHON a Python with the stock trainer.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.mixed_job import OURS, ROUNDS, STOCK, MixedJob, open_mixed_job
from support.waiting import until

BIN, PYTHON = os.environ.get("HYPHA_BIN"), os.environ.get("HYPHA_STOCK_PYTHON")

pytestmark = [
    pytest.mark.skipif(PYTHON is None, reason="HYPHA_STOCK_PYTHON names no Python with hypha.accelerate_executor"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def job() -> Iterator[MixedJob]:
    with (
        tempfile.TemporaryDirectory(prefix="mixed-", dir="/tmp") as directory,
        open_mixed_job(Path(directory), MixedJob) as job,
    ):
        yield job


@pytest.mark.parametrize("server", ["our", "reference"])
def test_both_trainers_end_with_the_same_model_that_has_learnt(job: MixedJob, server: str) -> None:
    if server == "reference" and BIN is None:
        pytest.skip("HYPHA_BIN is not set; it names the directory of hypha-worker")
    assert PYTHON is not None
    before = job.loss(job.files.untrained / "model.safetensors")
    scheduler = job.run(PYTHON, Path(BIN) if BIN and server == "reference" else None)
    assert scheduler.ended(500) == 0, scheduler.last_lines()
    until(job.stock_weights.exists)
    ours, stock = load_file(job.our_weights), load_file(job.stock_weights)
    assert ours.keys() == stock.keys()
    assert all(torch.equal(tensor, stock[name]) for name, tensor in ours.items())
    after = job.loss(job.our_weights)
    print(
        f"{server} parameter server, {ROUNDS} rounds of {OURS} (ours) and {STOCK} (stock): {before:.3f} to {after:.3f}"
    )
    assert after < 0.8 * before
