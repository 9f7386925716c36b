"""Trainers that uv installs by the documented command lines train a model together: the stock one and ours.

HYPHA_STOCK_WHEEL names the wheel of the stock trainer. uv finds its package index as its own variables say, and Python
3.12 in PATH or by its own download. The packages take 6 GB in uv's cache.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from rich.console import Console

from hypha_devnet.demo import run
from hypha_devnet.demo.settings import TRAINERS, Files, worker_config
from hypha_devnet.demo.view import PlainView
from images.contexts import ROOT
from images.dist import build

STOCK = os.environ.get("HYPHA_STOCK_WHEEL", "")

pytestmark = [
    pytest.mark.alone,
    pytest.mark.registry,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not STOCK, reason="HYPHA_STOCK_WHEEL does not name the wheel of the stock trainer"),
]

ACCELERATE = 'compute_environment: LOCAL_MACHINE\ndistributed_type: "NO"\nmixed_precision: "no"\nuse_cpu: true\n'
OPTIONS = ("--socket", "{SOCKET_PATH}", "--work-dir", "{WORK_DIR}")
RUN = ("run", "--python", "3.12", "--no-project", "--with")


def ours(wheel: Path, accelerate: Path, kept: Path) -> list[str]:
    """The command line of docs/trainer.md."""
    launch = ["python", "-m", "hypha_executor.restart", "-m", "hypha_trainer.launch"]
    launch += ["--config_file", str(accelerate), "-m", "hypha_trainer"]
    return [*RUN, f"{wheel}[trainer]", "--", *launch, *OPTIONS, "--job-file", "{JOB_FILE}", "--output-dir", str(kept)]


def stock(accelerate: Path) -> list[str]:
    """The command line of the reference implementation's documentation."""
    launch = ["accelerate", "launch", "--config_file", str(accelerate), "-m", "hypha.accelerate_executor.training"]
    return [*RUN, STOCK, "--", *launch, *OPTIONS, "--job", "{JOB_JSON}"]


def test_the_stock_wheel_and_ours_train_a_model_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerate = tmp_path / "accelerate.yaml"
    accelerate.write_text(ACCELERATE)
    [wheel] = [path for path in build(ROOT, tmp_path / "dist") if path.suffix == ".whl"]
    files = Files(tmp_path / "output")
    files.root.mkdir()
    args = {TRAINERS[0]: ours(wheel, accelerate, files.trained(TRAINERS[0])), TRAINERS[1]: stock(accelerate)}

    def with_uv(files: Files, worker: str, gateway: str, work_dir: Path) -> Mapping[str, Any]:
        config = worker_config(files, worker, gateway, work_dir)
        for executor in config["executors"]:
            if worker in args:
                executor |= {"cmd": "uv", "args": args[worker]}
        return config

    monkeypatch.setattr(run, "worker_config", with_uv)
    monkeypatch.setattr(run, "_JOB_S", 3000.0)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as work_dir, capsys.disabled():
        result = trio.run(run._Demo(files, Path(work_dir), PlainView(Console())).run)
    assert result is not None
    assert files.model.score.verdict(result.network, result.alone, result.baseline).good, result
