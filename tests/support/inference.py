"""A job around an inference executor: a bridge, a scheduler, a model hub, and a peer for the predictions."""

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from support.trainer import JOB_ID, PEER, PEERS
from support.unix_http import JsonHandler, UnixServer


def inference_spec(**config: Any) -> dict[str, Any]:
    """An inference job with a tiny image classifier; `config` replaces parts of its configuration."""
    model = {"type": "huggingface", "repository": "tests/tiny", "filenames": ["config.json", "model.safetensors"]}
    settings = {
        "model": {"task": "image-classification", "artifact": model, "input-names": ["pixel_values"]},
        "data": {"type": "scheduler", "peer": PEER, "dataset": "digits"},
        "results": PEERS,
        "batch_size": 8,
        **config,
    }
    executor = {"class": "inference", "descriptor": {"name": "transformers"}, "config": settings}
    return {"job_id": JOB_ID, "executor": executor}


@dataclass
class Predicted:
    """The predictions of a slice that the peer received."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


@dataclass
class Surroundings:
    """What an inference executor deals with through its bridge. `slices` are assigned once, in their order."""

    model: Path
    slices: list[Path]
    work_dir: Path
    reports: list[Any] = field(default_factory=list)
    received: list[Predicted] = field(default_factory=list)
    telemetry: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[Any], str] = lambda _: "Continue"
    fetched: int = 0

    def __post_init__(self) -> None:
        self.work_dir.mkdir(exist_ok=True)
        self.socket = self.work_dir / "bridge.sock"
        self._server = _Server(str(self.socket), _Handler)
        self._server.around = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """End the bridge."""
        self._server.shutdown()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)

    def fetch(self, reference: dict[str, Any]) -> list[dict[str, Any]] | None:
        """Copy the files of a reference into artifacts/; None if no slice is left."""
        if reference["type"] == "scheduler":
            if self.fetched == len(self.slices):
                return None
            sources = {str(self.fetched): self.slices[self.fetched]}
            self.fetched += 1
        else:
            sources = {name: self.model / name for name in reference["filenames"]}
        (self.work_dir / "artifacts").mkdir(exist_ok=True)
        for name, source in sources.items():
            shutil.copyfile(source, self.work_dir / "artifacts" / name)
        return [{"path": f"artifacts/{name}", "size": source.stat().st_size} for name, source in sources.items()]

    def take(self, path: Path) -> None:
        """Receive predictions, as the peer does."""
        with safe_open(path, framework="pt") as file:
            self.received.append(Predicted(load_file(path), file.metadata()))


class _Server(UnixServer):
    around: Surroundings


class _Handler(JsonHandler):
    server: _Server

    def do_POST(self) -> None:  # noqa: N802
        around, body = self.server.around, json.loads(self.body())
        if self.path == "/resources/fetch":
            fetched = around.fetch(body)
            if fetched is None:
                self.reply({"error": "no_slice", "detail": "the scheduler has no slice"}, status=410)
            else:
                self.reply(fetched)
        elif self.path == "/resources/send":
            assert body["wait"], "otherwise the report of the slice could be wrong"
            around.take(around.work_dir / body["path"])
            self.reply(None)
        elif self.path == "/status/send":
            around.reports.append(body)
            self.reply({"type": around.answer(body)})
        else:
            around.telemetry.append(body)
            self.reply(None)
