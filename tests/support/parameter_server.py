"""A bridge for the parameter server's tests: the stock form of the API on a Unix socket, without a network."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from support.unix_http import JsonHandler, UnixServer

JOB_ID = "7b1f8f3e-6a55-4b42-9b0e-0d9d3b1d4c11"
MEMBERS = ("12D3KooWA", "12D3KooWB", "12D3KooWC")
WAIT_S = 30
CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"
"""A trace context, without which executors send no telemetry."""


def job_json(members=MEMBERS, learning_rate=0.7, momentum=0.9) -> str:
    peers = {"type": "peers", "peers": list(members), "strategy": {"type": "All"}}
    optimizer = {"learning-rate": learning_rate, "momentum": momentum}
    config = {"updates": peers, "results": peers, "optimizer": optimizer}
    executor = {"class": "aggregate", "descriptor": {"name": "parameter-server"}, "config": config}
    return json.dumps({"job_id": JOB_ID, "executor": executor})


class Bridge:
    """Serves one job. `answers` are the scheduler's answers to each 'updated'; the last one is repeated."""

    def __init__(self, work_dir: Path, answers=({"type": "Ok"},)):
        self.socket = work_dir / "bridge.sock"
        self.work_dir = work_dir
        self.answers = list(answers)
        self.statuses: list[Any] = []
        self.telemetry: list[dict[str, Any]] = []
        self.updates: queue.Queue[tuple[dict[str, str], dict[str, np.ndarray], Path]] = queue.Queue()
        self._events: queue.Queue[str | None] = queue.Queue()
        (work_dir / "incoming").mkdir(exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self._server = UnixServer(str(self.socket), self._handler())
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._events.put(None)
        self._server.shutdown()
        self._server.server_close()

    def push(self, peer: str, write: Callable[[Path], None], announce: bool = True) -> Path:
        """Push a peer's file, which `write` makes."""
        path = self.work_dir / "incoming" / peer
        write(self.work_dir / "staged")
        (self.work_dir / "staged").rename(path)
        if announce:
            self.announce(peer, f"incoming/{peer}")
        return path

    def push_tensors(self, peer: str, tensors: Mapping[str, np.ndarray], **metadata: Any) -> Path:
        labels = {key: str(value) for key, value in metadata.items()}
        return self.push(peer, lambda path: save_file(dict(tensors), path, labels))

    def announce(self, peer: str, path: str) -> None:
        self._events.put(f"data: {json.dumps({'path': path, 'size': 1, 'from_peer': peer})}\n\n")

    def break_stream(self) -> None:
        self._events.put(None)

    def _send(self, body: dict[str, Any]) -> None:
        path = self.work_dir / body["path"]
        copy = self.work_dir / f"sent-{self.updates.qsize()}"
        shutil.copyfile(path, copy)
        with path.open("rb") as file:
            metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
        self.updates.put((metadata, load_file(copy), path))

    def _handler(bridge) -> type[JsonHandler]:  # noqa: N805
        class Handler(JsonHandler):
            def do_POST(self):  # noqa: N802
                body = json.loads(self.body())
                if self.path == "/resources/receive":
                    self._stream()
                elif self.path == "/resources/send":
                    bridge._send(body)
                    self.reply(None)
                elif self.path == "/telemetry":
                    bridge.telemetry.append(body)
                    self.reply(None)
                else:
                    bridge.statuses.append(body)
                    self.reply(bridge.answers.pop(0) if len(bridge.answers) > 1 else bridge.answers[0])

            def _stream(self):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(b": keepalive\n\n")
                while (event := bridge._events.get()) is not None:
                    try:
                        self.wfile.write(event.encode())
                    except BrokenPipeError:
                        bridge._events.put(event)
                        return

        return Handler


def tensors(value):
    return {"weight": np.full((3, 2), value, np.float32), "bias": np.full(4, value, np.float16)}


class Process:
    """A parameter server; tests wait for lines of its log."""

    def __init__(self, bridge, *options, members=MEMBERS, momentum=0.9):
        bridge.statuses.clear()
        job = job_json(members, learning_rate=1.0, momentum=momentum)
        command = [sys.executable, "-m", "hypha_parameter_server", "--socket", bridge.socket, "--job", job, *options]
        self.log_path = bridge.work_dir / "log"
        with self.log_path.open("w") as log:
            self._process = subprocess.Popen(
                [*command, "--work-dir", bridge.work_dir], stderr=log, env={**os.environ, "TRACEPARENT": CONTEXT}
            )

    @property
    def log(self):
        return self.log_path.read_text()

    def logs(self, text, times=1):
        deadline = time.monotonic() + WAIT_S
        while self.log.count(text) < times:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log}"
            time.sleep(0.01)

    def peak_mib(self):
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def kill(self):
        self._process.kill()
        self._process.wait()

    def exit_status(self):
        return self._process.wait(WAIT_S)

    def send_signal(self, number):
        self._process.send_signal(number)


def update(bridge):
    return bridge.updates.get(timeout=WAIT_S)


def contributions(bridge):
    return [path.name for path in (bridge.work_dir / "parameter-server").iterdir() if path.name.startswith("12D3")]
