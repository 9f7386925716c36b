"""The bridge of a measured trainer, in threads: it serves files, asks for updates, and times the reports of batches."""

import contextlib
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from benchmarks.nodes import BenchmarkError

ROUND_S = 200.0
"""How long a round may take, the start of the processes included."""

KEEPALIVE_S = 5.0
PEER = "12D3KooWAYWS7kNsRXmUDsTKdU9eksCh3WPKktS3kqU4mJXP66Xh"


class Bridge(ThreadingMixIn, UnixStreamServer):
    """A bridge, scheduler and parameter server for one trainer, whose pseudo-gradient comes back as the update."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, work_dir: Path, files: dict[str, Path], batches: int, rounds: int) -> None:
        self._work_dir, self._files, self._batches, self._rounds = work_dir, files, batches, rounds
        self._reports: list[float] = []
        self._merged = 0
        self._sent: Path | None = None
        self._round_s: queue.Queue[float] = queue.Queue()
        self.updates: queue.Queue[Path] = queue.Queue()
        (work_dir / "artifacts").mkdir(parents=True)
        (work_dir / "incoming").mkdir()
        super().__init__(str(work_dir / "bridge.sock"), _Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def wait_for_round(self, trainer: "subprocess.Popen[Any]") -> float:
        """Return the seconds of a round, from the report of its first batch to that of its last.

        The trainer then waits for the update until `release` is called.

        Raises:
            BenchmarkError: The trainer ended, or it sent no pseudo-gradient in time.
        """
        deadline = time.monotonic() + ROUND_S
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return self._round_s.get(timeout=0.2)
            if trainer.poll() is not None:
                raise BenchmarkError(f"the trainer ended with status {trainer.returncode}; its output says why")
        raise BenchmarkError(f"the trainer sent no pseudo-gradient within {ROUND_S:.0f} s")

    def release(self) -> None:
        """Send the update for which the trainer waits."""
        assert self._sent
        update = self._work_dir / "incoming" / f"update-{self._merged}"
        shutil.copyfile(self._sent, update)
        self.updates.put(update)

    def answer(self, path: str, body: Any) -> Any:
        """Return the answer to a call."""
        if path == "/resources/fetch":
            names = ["slice.safetensors"] if body["type"] == "scheduler" else body["filenames"]
            return [self._fetch(name) for name in names]
        if path == "/status/send":
            return self._progress(body)
        if path == "/resources/send":
            self._sent = self._work_dir / body["path"]
            self._round_s.put(self._reports[-1] - self._reports[0])
            self._reports = []
        return None

    def _fetch(self, name: str) -> dict[str, Any]:
        target = self._work_dir / "artifacts" / name
        target.unlink(missing_ok=True)
        os.link(self._files[name], target)
        return {"path": f"artifacts/{name}", "size": target.stat().st_size}

    def _progress(self, body: Any) -> dict[str, Any]:
        if body == "update-received":
            self._merged += 1
            return {"type": "Done" if self._merged == self._rounds else "Continue"}
        if isinstance(body, dict) and "status" in body:
            self._reports.append(time.monotonic())
            if len(self._reports) == 1:
                return {"type": "ScheduleUpdate", "counter": self._batches - 1}
            return {"type": "Continue"}
        return {"type": "Ok"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bridge

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
        if self.path == "/resources/receive":
            return self._receive()
        answer = self.server.answer(self.path, body)
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def _receive(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(b": keepalive\n\n")
        with contextlib.suppress(OSError):  # the trainer has ended
            while True:
                self.wfile.write(self._event())

    def _event(self) -> bytes:
        try:
            update = self.server.updates.get(timeout=KEEPALIVE_S)
        except queue.Empty:
            return b": keepalive\n\n"
        event = {"path": f"incoming/{update.name}", "size": update.stat().st_size, "from_peer": PEER}
        return f"data: {json.dumps(event)}\n\n".encode()
