"""The speed at which the connector API moves bulk data between a node and a bridge, without any network."""

import multiprocessing
import os
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import trio

from benchmarks.figures import Figure
from benchmarks.nodes import job_of, peers, train_config
from hypha_bridge.connector import Connector as Client
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_devnet.certs import create_node, create_organisation, create_root
from hypha_messages.types import Resources
from hypha_network.identity import Identity
from hypha_worker.connector.api import Connector
from hypha_worker.connector.http_server import listen_unix, serve_tls, serve_unix
from hypha_worker.connector.pushes import PushRouter
from hypha_worker.job import Job

PEER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
TOKEN = "t" * 43


@dataclass(frozen=True)
class Scale:
    """How much to measure.

    Attributes:
        total_bytes: Size of each transfer.
    """

    total_bytes: int


FULL = Scale(total_bytes=2 * 1024**3)
SMALL = Scale(total_bytes=1024**2)


class Source:
    """A stream that yields pieces of one size, and discards what is sent."""

    def __init__(self, piece_bytes: int, total_bytes: int) -> None:
        self._piece = bytes(piece_bytes)
        self._left = total_bytes

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
    """A network whose peers are in memory."""

    peer_id = "the node itself"

    def __init__(self, piece_bytes: int, total_bytes: int) -> None:
        self._piece_bytes, self._total_bytes = piece_bytes, total_bytes

    async def open_stream(self, _peer: str, _protocol: str) -> Any:
        return Source(self._piece_bytes, self._total_bytes)

    async def request(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    def favour(self, _peer: str) -> None:
        """Nobody competes with the only peer."""


def job() -> Job:
    data = peers(PEER) | {"resource": {"dataset": "bulk", "index": 0}}
    spec = job_of(uuid4(), "x", train_config(data, PEER))
    return Job(uuid4(), uuid4(), PEER, spec, Resources(), 0.0)


def make_identity() -> Identity:
    credential = create_node(create_organisation(create_root(), "Acme"), "node")
    return Identity.from_pem(credential.cert_pem, credential.key_pem, credential.trust_pem)


class Shared:
    """State shared by both processes: start and stop signals, the node's port and its processor time in seconds."""

    def __init__(self) -> None:
        self.ready = multiprocessing.Event()
        self.stop = multiprocessing.Event()
        self.port = multiprocessing.Value("i")
        self.cpu = multiprocessing.Value("d")


def serve(path: Path, identity: Identity | None, piece_bytes: int, total_bytes: int, shared: Shared) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            made = job()

            async def authenticate(token: str) -> UUID | None:
                await trio.lowlevel.checkpoint()
                return made.task_id if token == TOKEN else None

            connector = Connector(
                NoNetwork(piece_bytes, total_bytes),
                PushRouter(),
                nursery,
                authenticate=authenticate,
                record_progress=lambda _task_id, _progress: None,
            )
            connector.add(made)
            if identity is None:
                nursery.start_soon(serve_unix, listen_unix(path), connector.handle)
            else:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                shared.port.value = listeners[0].socket.getsockname()[1]
                nursery.start_soon(serve_tls, listeners, lambda: identity, connector.handle)
            shared.ready.set()
            await trio.to_thread.run_sync(shared.stop.wait)
            nursery.cancel_scope.cancel()

    trio.run(run)
    used = resource.getrusage(resource.RUSAGE_SELF)
    shared.cpu.value = used.ru_utime + used.ru_stime


class Nowhere:
    def write(self, data: memoryview) -> None:
        pass


def run(scale: Scale) -> list[Figure]:
    """Return rates in MB/s, and the node's processor time in seconds per GB."""
    return [
        figure
        for identity in (None, make_identity())
        for direction, piece_bytes in (("pull", 16 * 1024), ("pull", 256 * 1024), ("push", 256 * 1024))
        for figure in measure(piece_bytes, direction, identity, scale.total_bytes)
    ]


def transfer(client: Client, direction: str, total_bytes: int) -> float:
    """Transfer this many bytes; return how many seconds it took."""
    started = time.monotonic()
    if direction == "pull":
        client.pull(PEER, "bulk", 0, Nowhere())
    else:
        with tempfile.TemporaryFile() as file:
            os.truncate(file.fileno(), total_bytes)
            client.push(PEER, file)
    return time.monotonic() - started


def measure(piece_bytes: int, direction: str, identity: Identity | None, total_bytes: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        path, token_file = Path(directory, "connector.sock"), Path(directory, "token")
        token_file.write_text(TOKEN)
        shared = Shared()
        server = multiprocessing.Process(target=serve, args=(path, identity, piece_bytes, total_bytes, shared))
        server.start()
        shared.ready.wait()
        config = ConnectorConfig(uds=path, token_file=token_file)
        if identity is not None:
            url = f"https://127.0.0.1:{shared.port.value}"
            config = ConnectorConfig(url=url, peer_id=identity.peer_id, token_file=token_file)
        try:
            seconds = transfer(Client(config), direction, total_bytes)
        finally:
            shared.stop.set()
            server.join()
    name = f"pull in pieces of {piece_bytes // 1024} KiB" if direction == "pull" else "push of a file"
    name += " over TLS" if identity else ""
    return [
        Figure(name, total_bytes / seconds / 1e6, "MB/s"),
        Figure(f"{name}, the node's processor time", shared.cpu.value / total_bytes * 1e9, "s/GB"),
    ]
