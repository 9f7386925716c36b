"""How fast the connector API moves bulk data between a node and a bridge, without any network."""

import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import trio

from benchmarks.figures import Figure
from hypha_bridge.config import ConnectorConfig
from hypha_bridge.connector import Connector as Client
from hypha_messages.job import JobSpec
from hypha_messages.types import Resources
from hypha_worker import http_server
from hypha_worker.connector import Connector
from hypha_worker.pushes import PushRouter
from hypha_worker.runtime import Job

TOTAL_BYTES = 2 * 1024**3
PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
TOKEN = "t" * 43


class Source:
    """A stream that yields pieces of one size, and takes whatever is sent."""

    def __init__(self, piece_bytes: int) -> None:
        self._piece = bytes(piece_bytes)
        self._left = TOTAL_BYTES

    async def receive_some(self, _max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        self._left -= len(self._piece)
        return self._piece if self._left >= 0 else b""

    async def send_all(self, _data: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        self._left = 0

    async def aclose(self) -> None:
        pass

    def reset(self) -> None:
        pass


class NoNetwork:
    """Peers made of memory."""

    peer_id = "the node itself"

    def __init__(self, piece_bytes: int) -> None:
        self._piece_bytes = piece_bytes

    async def open_stream(self, _peer: str, _protocol: str) -> Any:
        return Source(self._piece_bytes)

    async def request(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    def connected_peers(self) -> list[str]:
        return [PEER]


def job() -> Job:
    others = {"type": "peers", "peers": [PEER], "strategy": {"type": "All"}}
    slice_ = others | {"resource": {"dataset": "bulk", "index": 0}}
    model = {"task": "auto", "artifact": slice_, "input-names": []}
    optimizer = {"learning-rate": 0.1}
    config = {"model": model, "data": slice_, "updates": others, "results": others}
    executor = {
        "class": "train",
        "descriptor": {"name": "x"},
        "config": config | {"optimizer": optimizer, "batch_size": 1},
    }
    spec = JobSpec.model_validate({"job_id": str(uuid4()), "executor": executor})
    return Job(uuid4(), uuid4(), PEER, spec, Resources(), 0.0, TOKEN)


def serve(path: Path, piece_bytes: int, ready: Any, stop: Any, cpu: Any) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            connector = Connector(NoNetwork(piece_bytes), PushRouter(), nursery)
            connector.add(job())
            nursery.start_soon(http_server.serve_unix, http_server.listen_unix(path), connector.handle)
            ready.set()
            await trio.to_thread.run_sync(stop.wait)
            nursery.cancel_scope.cancel()

    trio.run(run)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu.value = used.ru_utime + used.ru_stime


class Nowhere:
    def write(self, data: memoryview) -> None:
        pass


def run() -> list[Figure]:
    """Rates in MB/s, and what a GB costs the node in seconds of a processor."""
    return [
        figure
        for direction, piece_bytes in (("pull", 16 * 1024), ("pull", 256 * 1024), ("push", 256 * 1024))
        for figure in measure(piece_bytes, direction)
    ]


def transfer(client: Client, direction: str) -> float:
    """Seconds that it takes."""
    started = time.monotonic()
    if direction == "pull":
        client.pull(PEER, "bulk", 0, Nowhere())
    else:
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), TOTAL_BYTES)
            client.push(PEER, file)
    return time.monotonic() - started


def measure(piece_bytes: int, direction: str) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        path, token_file = Path(directory, "connector.sock"), Path(directory, "token")
        token_file.write_text(TOKEN)
        ready, stop, cpu = multiprocessing.Event(), multiprocessing.Event(), multiprocessing.Value("d")
        server = multiprocessing.Process(target=serve, args=(path, piece_bytes, ready, stop, cpu))
        server.start()
        ready.wait()
        try:
            seconds = transfer(Client(ConnectorConfig(uds=path, token_file=token_file)), direction)
        finally:
            stop.set()
            server.join()
    name = f"pull in pieces of {piece_bytes // 1024} KiB" if direction == "pull" else "push of a file"
    return [
        Figure(name, TOTAL_BYTES / seconds / 1e6, "MB/s"),
        Figure(f"{name}, the node's processor time", cpu.value / TOTAL_BYTES * 1e9, "s/GB"),
    ]
