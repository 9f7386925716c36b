"""Trainers and parameter servers of both implementations train a model with BatchNorm.

HYPHA_BIN names the directory of the reference's programs, and HYPHA_STOCK_PYTHON a Python with the stock trainer.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.batchnorm_job import BatchNormJob
from support.mixed_job import OURS, STOCK, open_mixed_job
from support.waiting import until

BIN, PYTHON = os.environ.get("HYPHA_BIN"), os.environ.get("HYPHA_STOCK_PYTHON")

pytestmark = pytest.mark.timeout(600)
needs_server = pytest.mark.skipif(BIN is None, reason="HYPHA_BIN names no directory with hypha-worker")
needs_trainer = pytest.mark.skipif(
    PYTHON is None, reason="HYPHA_STOCK_PYTHON names no Python with hypha.accelerate_executor"
)


@pytest.fixture
def job() -> Iterator[BatchNormJob]:
    with (
        tempfile.TemporaryDirectory(prefix="norm-", dir="/tmp") as directory,
        open_mixed_job(Path(directory), BatchNormJob) as job,
    ):
        yield job


@pytest.mark.parametrize(
    ("server", "stock"),
    [
        pytest.param("reference", [], marks=needs_server, id="two of ours under the reference's server"),
        pytest.param(
            "reference", [STOCK], marks=[needs_server, needs_trainer], id="both trainers under the reference's server"
        ),
        pytest.param("our", [STOCK], marks=needs_trainer, id="both trainers under our server"),
        pytest.param("our", [OURS, STOCK], marks=needs_trainer, id="two stock trainers under our server"),
    ],
)
def test_no_momentum_drives_the_variances_of_our_trainers_or_under_our_server(
    job: BatchNormJob, server: str, stock: list[str]
) -> None:
    scheduler = job.run(PYTHON or "", Path(BIN) if BIN and server == "reference" else None, stock)
    assert scheduler.ended(500) == 0, scheduler.last_lines()
    for name in (OURS, STOCK):
        if name in stock:
            weights = job.copied_weights(name)
            until(weights.exists)
        else:
            (weights,) = job.files.trained(name).glob("*/model.safetensors")
        variance, accuracy = job.smallest_variance(weights), job.accuracy(weights)
        kind = "stock" if name in stock else "our"
        print(f"{server} server, {kind} trainer: smallest variance {variance:.3f}, accuracy {accuracy:.2f}")
        if server == "our" or name not in stock:
            assert variance >= 0
            assert accuracy > 0.15  # with NaN, a model reads a tenth
