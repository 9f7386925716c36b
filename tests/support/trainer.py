"""A job around trainers: bridges with the stock form of the API, one scheduler and one parameter server."""

import json
import queue
import shutil
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from transformers import ConvNextConfig, ConvNextForImageClassification, LlamaConfig, LlamaForCausalLM

from support.unix_http import JsonHandler, UnixServer

PEER = "12D3KooWAYWS7kNsRXmUDsTKdU9eksCh3WPKktS3kqU4mJXP66Xh"
JOB_ID = "7b0f7b3e-4d0a-4c6b-9e52-0d6b3f7d2a11"
PEERS = {"type": "peers", "peers": [PEER], "strategy": {"type": "All"}}


def job_spec(**config: Any) -> dict[str, Any]:
    """A train job for a tiny image classifier; `config` replaces parts of its configuration."""
    model = {"type": "huggingface", "repository": "tests/tiny", "filenames": ["config.json", "model.safetensors"]}
    return {
        "job_id": JOB_ID,
        "executor": {
            "class": "train",
            "descriptor": {"name": "diloco"},
            "config": {
                "model": {
                    "task": "image-classification",
                    "artifact": model,
                    "input-names": ["pixel_values", "labels"],
                },
                "data": {"type": "scheduler", "peer": PEER, "dataset": "digits"},
                "updates": PEERS,
                "results": PEERS,
                "optimizer": {"learning-rate": 2e-3},
                "batch_size": 8,
                **config,
            },
        },
    }


@dataclass
class Hub:
    """The shared parts of a job: the model's files, the slices, the scheduler and the parameter server."""

    model: Path
    slices: list[Path]
    batches: int = 4
    """Batches of each trainer between two updates."""
    rounds: int = 2
    trainers: int = 1
    learning_rate: float = 1.0
    momentum: float = 0.0
    reports: dict[int, list[Any]] = field(default_factory=lambda: defaultdict(list))
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    updates: list[dict[str, torch.Tensor]] = field(default_factory=list)
    fetched: int = 0
    telemetry: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._round: dict[int, tuple[dict[str, torch.Tensor], int]] = {}
        self._momentum: dict[str, torch.Tensor] = {}
        self.mailboxes: dict[int, queue.Queue[Path | None]] = defaultdict(queue.Queue)

    def next_slice(self) -> Path:
        """Return the next slice, and after the last one the first again."""
        with self._lock:
            self.fetched += 1
            return self.slices[(self.fetched - 1) % len(self.slices)]

    def answer(self, trainer: int, progress: Any) -> dict[str, Any]:
        """Return the scheduler's answer."""
        with self._lock:
            self.reports[trainer].append(progress)
            reports = self.reports[trainer]
        if progress == "update-received":
            return {"type": "Done" if reports.count("update-received") >= self.rounds else "Continue"}
        if isinstance(progress, dict) and "status" in progress:
            done = len(batches_of_last_round(reports))
            return {"type": "ScheduleUpdate", "counter": self.batches - 1} if done == 1 else {"type": "Continue"}
        return {"type": "Ok"}

    def take_gradient(self, trainer: int, path: Path, bridges: "list[Bridge]") -> None:
        """Act as the parameter server: take a Nesterov step over the mean once every trainer has sent.

        A restarted trainer may send a pseudo-gradient again, in its round or after it.
        """
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        gradient = load_file(path)
        with self._lock:
            self.metadata.append(metadata)
            self.gradients.append(gradient)
            if int(metadata["round"]) <= len(self.updates):
                return
            self._round[trainer] = gradient, int(metadata["samples"])
            if len(self._round) < self.trainers:
                return
            sent = list(self._round.values())
            total = sum(samples for _, samples in sent)
            mean = {name: sum(g[name] * (n / total) for g, n in sent) for name in gradient}
            self._round = {}
            self._momentum = {n: self.momentum * self._momentum.get(n, 0.0 * g) + g for n, g in mean.items()}
            update = {n: self.learning_rate * (self.momentum * self._momentum[n] + g) for n, g in mean.items()}
            self.updates.append(update)
            number = len(self.updates)
        for bridge in bridges:
            target = bridge.work_dir / "incoming" / f"{PEER}.{number}"
            target.parent.mkdir(exist_ok=True)
            save_file(update, target, metadata={"job_id": JOB_ID, "round": str(number)})
            self.mailboxes[bridge.number].put(target)


def batches_of_last_round(reports: list[Any]) -> list[int]:
    """The batch sizes that were reported since the last merged update."""
    since = max((i for i, report in enumerate(reports) if report == "update-received"), default=-1)
    return [r["status"]["batch_size"] for r in reports[since + 1 :] if isinstance(r, dict) and "status" in r]


class Bridge:
    """One trainer's bridge."""

    def __init__(self, hub: Hub, work_dir: Path, number: int = 0, siblings: "list[Bridge] | None" = None):
        self.hub, self.work_dir, self.number = hub, work_dir, number
        self.siblings = [self] if siblings is None else siblings
        self.failures: dict[str, int] = {}
        """The number of requests to a path that are still to be answered with 503."""
        self.drop_events = 0
        """The number of event streams that are still to be cut right after they open."""
        self.subscriptions = 0
        self.announced: list[Path] = []
        work_dir.mkdir(exist_ok=True)
        self.socket = work_dir / "bridge.sock"
        self._server = _Server(str(self.socket), _Handler)
        self._server.bridge = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        """End the bridge and remove its socket, as a worker does at the end of a job."""
        self._server.shutdown()
        self._server.server_close()
        self.socket.unlink(missing_ok=True)

    def end_events(self) -> None:
        """Cut the open event streams."""
        self.hub.mailboxes[self.number].put(None)

    def fetch(self, reference: dict[str, Any]) -> list[dict[str, Any]]:
        """Copy the files of a reference into artifacts/."""
        if reference["type"] == "scheduler":
            sources = [self.hub.next_slice()]
        else:
            sources = [self.hub.model / name for name in reference["filenames"]]
        folder = self.work_dir / "artifacts"
        folder.mkdir(exist_ok=True)
        for source in sources:
            shutil.copyfile(source, folder / source.name)
        return [{"path": f"artifacts/{s.name}", "size": s.stat().st_size} for s in sources]


class _Server(UnixServer):
    bridge: Bridge


class _Handler(JsonHandler):
    server: _Server

    def do_POST(self) -> None:  # noqa: N802
        bridge = self.server.bridge
        body = json.loads(self.body())
        if bridge.failures.get(self.path, 0) > 0:
            bridge.failures[self.path] -= 1
            self.reply({"error": "unavailable", "detail": "try again"}, status=503)
        elif self.path == "/resources/fetch":
            self.reply(bridge.fetch(body))
        elif self.path == "/status/send":
            self.reply(bridge.hub.answer(bridge.number, body))
        elif self.path == "/resources/send":
            self.reply(None)
            bridge.hub.take_gradient(bridge.number, bridge.work_dir / body["path"], bridge.siblings)
        elif self.path == "/telemetry":
            bridge.hub.telemetry.append(body)
            self.reply(None)
        elif self.path == "/resources/receive":
            self._events(bridge)
        else:
            self.reply({"error": "not_found", "detail": self.path}, status=404)

    def _events(self, bridge: Bridge) -> None:
        bridge.subscriptions += 1
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": keepalive\n\n")
        if bridge.drop_events > 0:
            bridge.drop_events -= 1
            return
        mailbox = bridge.hub.mailboxes[bridge.number]
        after = int(self.headers.get("Last-Event-ID", len(bridge.announced)))
        for number, path in enumerate(bridge.announced):
            if number > after:
                self._announce(bridge, number, path)
        while path := mailbox.get():
            try:
                self._announce(bridge, len(bridge.announced), path)
            except OSError:  # the listener is dead; the next one gets it
                mailbox.put(path)
                return
            bridge.announced.append(path)

    def _announce(self, bridge: Bridge, number: int, path: Path) -> None:
        event = {"path": str(path.relative_to(bridge.work_dir)), "from_peer": PEER}
        self.wfile.write(f"id: {number}\ndata: {json.dumps(event)}\n\n".encode())


def write_digit_slices(folder: Path, count: int = 4, samples: int = 20) -> list[Path]:
    """Slices of real handwritten digits."""
    digits = load_digits()
    paths = []
    for number in range(count):
        rows = slice(number * samples, (number + 1) * samples)
        path = folder / f"slice-{number:04d}.safetensors"
        pixels = torch.tensor(digits.images[rows], dtype=torch.float32).unsqueeze(1) / 8 - 1
        save_file({"pixel_values": pixels, "labels": torch.tensor(digits.target[rows])}, path)
        paths.append(path)
    return paths


def write_tiny_model(folder: Path) -> Path:
    """A ConvNext for 8x8 digits, as transformers saves it."""
    torch.manual_seed(0)
    config = ConvNextConfig(
        num_channels=1,
        image_size=8,
        patch_size=2,
        num_stages=2,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_labels=10,
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,
    )
    ConvNextForImageClassification(config).save_pretrained(folder)
    return folder


def language_model(tied: bool = True) -> Any:
    """A Llama of 2 layers and 32 tokens; its embedding is tied to its head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def write_text_slices(folder: Path, count: int = 4, samples: int = 20, length: int = 12) -> list[Path]:
    """Slices of token sequences that count upwards, so that there is something to learn."""
    paths = []
    for number in range(count):
        starts = torch.arange(number * samples, (number + 1) * samples).unsqueeze(1)
        tokens = (starts + torch.arange(length)) % 29 + 3
        path = folder / f"slice-{number:04d}.safetensors"
        attended = (torch.arange(length) < length - 1).expand_as(tokens)  # a mask of ones would be ignored
        rows = {"input_ids": tokens, "labels": tokens.clone(), "attention_mask": attended}
        save_file({name: tensor.to(torch.int32) for name, tensor in rows.items()}, path)
        paths.append(path)
    return paths


def language_job(*more: str, **config: Any) -> dict[str, Any]:
    """Return a job as `job_spec` does, for the language model, with more inputs than those that it needs."""
    artifact = {"type": "huggingface", "repository": "tests/llama", "filenames": ["config.json", "model.safetensors"]}
    names = ["input_ids", "labels", *more]
    return job_spec(model={"task": "causal-lm", "artifact": artifact, "input-names": names}, **config)
