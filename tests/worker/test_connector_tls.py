"""The connector API over TLS, as a bridge in another pod meets it: the bridge's own client, a real network."""

import io
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import UUID

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hypha_bridge.connector import Connector as Client
from hypha_bridge.errors import ConnectorError
from hypha_contracts.bridge_config import ConnectorConfig
from hypha_contracts.node_config import KubernetesConfig
from hypha_devnet.certs import create_node
from hypha_devnet.ports import free_port
from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from hypha_messages.streams import PULL, PULL_LENGTH_BYTES, PUSH, decode_pull_length
from hypha_network.identity import Identity
from hypha_network.network import Network
from hypha_network.status import NetworkStatus
from hypha_network.wire.processor import CpuBudget
from hypha_network.wire.streams import Stream
from hypha_worker.connector import http_server
from hypha_worker.connector.api import Connector
from hypha_worker.connector.http_server import Exchange, serve_tls
from hypha_worker.connector.pushes import PushRouter
from hypha_worker.runtimes.kubernetes.cluster import listen_for_bridges
from support import jobs
from support.certs import Pki, identity_of
from support.networks import direct_address, node

pytestmark = pytest.mark.anyio

PATIENCE_S = 30
TOKEN = "a-token-of-the-cluster"
BIG = bytes(range(256)) * 80_000  # about 20 MB


@dataclass
class World:
    """A worker with one job, and a peer that has what is pulled and takes what is pushed."""

    pki: Pki
    network: Network
    peer: Network
    client: Client
    port: int
    received: list[bytes]
    nursery: trio.Nursery

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(lambda: function(*args), abandon_on_cancel=True)

    async def refusal(self, function: Callable[..., Any], *args: Any) -> ConnectorError:
        with pytest.raises(ConnectorError) as caught:
            await self.call(function, *args)
        return caught.value

    def get(self, path: str) -> tuple[int, Any]:
        """What a probe of the kubelet gets, which verifies nothing."""
        with anybody().wrap_socket(socket.create_connection(("localhost", self.port))) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
            answer = b""
            while data := stream.recv(65536):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)


def anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def world(directory: Path, *, healthy: bool = True, review_s: float = 0) -> AsyncIterator[World]:
    """With `review_s`, that is how long the cluster takes to refuse a token."""
    pki = Pki()
    token_file = directory / "token"
    token_file.write_text(TOKEN)
    gateways = () if healthy else ("/ip4/127.0.0.1/tcp/1",)
    port = free_port()
    config = KubernetesConfig(namespace="ns", worker="w", worker_uid="u", connector_port=port)
    with trio.fail_after(PATIENCE_S):
        async with (
            node(pki, "worker", gateways=gateways) as network,
            node(pki, "peer") as peer,
            trio.open_nursery() as nursery,
        ):
            received: list[bytes] = []

            async def send_slice(_peer: str, stream: Stream) -> None:
                length = decode_pull_length(bytes(await stream.read_exactly(PULL_LENGTH_BYTES)))
                await stream.read_exactly(length)
                await stream.send_all(BIG)

            async def take_push(_peer: str, stream: Stream) -> None:
                received.append(await stream.read_to_end(2**30))

            async def answer_progress(_peer: str, _report: ReportProgress) -> ProgressResponse:
                return ProgressResponse(type="Continue")

            peer.handle_stream(PULL, send_slice)
            peer.handle_stream(PUSH, take_push)
            peer.handle(PROGRESS, answer_progress)
            await network.dial(direct_address(peer))
            others = {"type": "peers", "peers": [peer.peer_id], "strategy": {"type": "All"}}
            data = others | {"resource": {"dataset": "digits", "index": 0}}
            job = replace(jobs.job(jobs.train_spec(data=data, updates=others, results=others)), scheduler=peer.peer_id)

            async def authenticate(token: str) -> UUID | None:
                await trio.sleep(0 if token == TOKEN else review_s)
                return job.task_id if token == TOKEN else None

            pushes = PushRouter()
            connector = Connector(
                network, pushes, nursery, authenticate=authenticate, record_progress=lambda _task, _progress: None
            )
            connector.add(job)
            network.handle_stream(PUSH, pushes.handle)
            serve = await listen_for_bridges(config, network)
            nursery.start_soon(serve, connector.handle)
            client = client_of(network.peer_id, port, token_file)
            yield World(pki, network, peer, client, port, received, nursery)
            client.close()
            nursery.cancel_scope.cancel()


def client_of(peer_id: str, port: int, token_file: Path) -> Client:
    return Client(
        ConnectorConfig(url=f"https://localhost:{port}", peer_id=peer_id, token_file=token_file, deadline_s=1)
    )


def file_of(directory: Path, data: bytes) -> Any:
    path = directory / "file"
    path.write_bytes(data)
    return path.open("rb")


async def test_a_slice_and_a_push_arrive_completely(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        sink = io.BytesIO()
        await the.call(the.client.pull, the.peer.peer_id, "digits", 0, sink)
        assert sink.getvalue() == BIG
        with file_of(tmp_path, BIG) as file:
            await the.call(the.client.push, the.peer.peer_id, file)
        assert the.received == [BIG]
        assert json.loads(await the.call(the.client.progress, "update")) == {"type": "Continue"}


async def test_another_token_is_refused_and_worth_another_attempt(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        (tmp_path / "token").write_text("another")
        refusal = await the.refusal(the.client.progress, "update")
        assert (refusal.status, refusal.retryable) == (401, True)


async def test_a_bridge_sends_nothing_to_a_node_with_another_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as the:
        heard = []

        async def overhear(exchange: Exchange) -> None:
            heard.append(exchange.headers)
            await exchange.answer_empty()

        impostor = the.pki.identity("impostor")
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        the.nursery.start_soon(serve_tls, listeners, lambda: impostor, overhear)
        port = listeners[0].socket.getsockname()[1]
        client = client_of(the.network.peer_id, port, tmp_path / "token")
        refusal = await the.refusal(client.progress, "update")
        assert (refusal.code, refusal.retryable) == ("wrong_node", True)
        assert f"is {impostor.peer_id}, not the worker {the.network.peer_id}" in caplog.text
        assert heard == []


async def test_a_bridge_receives_an_early_refusal_of_a_large_push(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        with file_of(tmp_path, BIG) as file:
            refusal = await the.refusal(the.client.push, jobs.STRANGER, file)
        assert (refusal.status, refusal.code) == (403, "forbidden")


async def test_a_bridge_that_stops_waiting_loses_no_push(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        impatient = await the.call(lambda: anybody().wrap_socket(socket.create_connection(("localhost", the.port))))
        impatient.sendall(f"GET /pushes HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        await the.call(the.client.progress, "update")  # by now the node has seen the request before
        impatient.close()

        async def push() -> None:
            stream = await the.peer.open_stream(the.network.peer_id, PUSH)
            await stream.send_all(b"update")
            await stream.send_eof()

        sink = io.BytesIO()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push)
            assert await the.call(the.client.take_push, lambda _: sink) == the.peer.peer_id
        assert sink.getvalue() == b"update"


async def test_renewed_certificates_are_shown_and_the_same_bridge_goes_on(tmp_path: Path) -> None:
    pki = Pki()
    credential = pki.node("worker")
    current = [identity_of(credential)]
    served: list[str] = []

    async def answer(exchange: Exchange) -> None:
        served.append(exchange.path)
        await exchange.answer_json({})

    (tmp_path / "token").write_text(TOKEN)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(serve_tls, listeners, lambda: current[0], answer)
            port = listeners[0].socket.getsockname()[1]
            client = client_of(current[0].peer_id, port, tmp_path / "token")
            shown = []
            for _ in range(2):
                await trio.to_thread.run_sync(client.progress, "update")
                shown.append(await trio.to_thread.run_sync(certificate_at, port))
                current[0] = renewed(pki, current[0])
            assert shown[0] != shown[1]
            assert served == ["/progress"] * 2
            nursery.cancel_scope.cancel()


def certificate_at(port: int) -> bytes:
    with anybody().wrap_socket(socket.create_connection(("localhost", port))) as stream:
        return stream.getpeercert(binary_form=True) or b""


def renewed(pki: Pki, identity: Identity) -> Identity:
    """The same key with another certificate."""
    key = Ed25519PrivateKey.from_private_bytes(identity.seed)
    return identity_of(create_node(pki.organisation, "worker", key=key))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2])
async def test_older_tls_is_refused(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with world(tmp_path) as the:
        context = anybody()
        context.maximum_version = version

        def connect() -> None:
            with context.wrap_socket(socket.create_connection(("localhost", the.port))):
                pass

        with pytest.raises(ssl.SSLError):
            await the.call(connect)
        await the.call(the.client.progress, "update")


async def test_silent_connections_cannot_block_a_bridge(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        silent = [socket.create_connection(("localhost", the.port)) for _ in range(200)]
        for _ in range(20):
            await the.call(the.client.progress, "update")
        for connection in silent:
            connection.close()


async def test_connections_with_wrong_tokens_from_another_pod_evict_no_call_of_a_bridge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_HEAD_TIMEOUT_S", PATIENCE_S)  # the flood takes a while on a busy machine
    async with world(tmp_path, review_s=5) as the:
        request = b"GET /pushes HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer wrong\r\n\r\n"

        def connect() -> socket.socket:
            stream = anybody().wrap_socket(socket.create_connection(("127.0.0.1", the.port), 5, ("127.0.0.2", 0)))
            stream.sendall(request)
            return stream

        patient = await the.call(lambda: anybody().wrap_socket(socket.create_connection(("127.0.0.1", the.port))))
        wrong = [await the.call(connect) for _ in range(220)]
        for _ in range(11):
            await the.call(the.client.progress, "update")
        patient.sendall(request.replace(b"wrong", TOKEN.encode()).replace(b"GET /pushes", b"GET /nothing"))
        assert (await the.call(patient.recv, 12)).endswith(b"404")
        for stream in [patient, *wrong]:
            stream.close()


FLOOD = """
import socket, ssl, struct, sys
port, source, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
head = b"POST /pushes HTTP/1.1\\r\\nAuthorization: Bearer wrong\\r\\nHost: n\\r\\nContent-Length: 999999999\\r\\n\\r\\n"
print("begun", flush=True)
while True:
    try:
        with socket.create_connection(("127.0.0.1", port), 5, (source, 0)) as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leaves no port in TIME_WAIT
            if kind == "bytes":
                with context.wrap_socket(raw) as stream:
                    stream.sendall(head)
                    while True:
                        stream.sendall(bytes(2**20))
    except OSError:
        pass
"""


async def test_a_bridge_sends_and_receives_while_other_pods_flood_the_connector(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        floods = []
        for source, kind in (("127.0.0.2", "connections"), ("127.0.0.3", "bytes")):
            command = [sys.executable, "-c", FLOOD, str(the.port), source, kind]
            floods.append(await trio.lowlevel.open_process(command, stdout=subprocess.PIPE))
        try:
            for flood in floods:
                assert flood.stdout is not None
                assert (await flood.stdout.receive_some()).startswith(b"begun")
            for _ in range(10):
                await the.call(the.client.progress, "update")
            sink = io.BytesIO()
            await the.call(the.client.pull, the.peer.peer_id, "digits", 0, sink)
            with file_of(tmp_path, BIG) as file:
                await the.call(the.client.push, the.peer.peer_id, file)
            assert (sink.getvalue(), the.received) == (BIG, [BIG])
            assert {flood.returncode for flood in floods} == {None}
        finally:
            for flood in floods:
                flood.kill()


async def test_invalid_bytes_end_only_their_connection(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        for garbage in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000), b"\x16\x03\x01\x40\x00"):
            with socket.create_connection(("localhost", the.port)) as connection:
                connection.sendall(garbage)
        await the.call(the.client.progress, "update")


async def test_probes_need_no_token(tmp_path: Path) -> None:
    async with world(tmp_path) as the:
        assert await the.call(the.get, "/healthz") == (200, {"status": "ok"})
        assert await the.call(the.get, "/readyz") == (200, {"status": "ok"})
        status, answer = await the.call(the.get, "/pushes")
        assert (status, answer["error"]) == (401, "unauthorized")


async def test_a_node_without_a_gateway_lives_and_is_not_ready(tmp_path: Path) -> None:
    async with world(tmp_path, healthy=False) as the:
        assert (await the.call(the.get, "/healthz"))[0] == 200
        status, answer = await the.call(the.get, "/readyz")
        assert (status, answer["detail"]) == (503, "no gateway is connected")


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        ({"listening": ()}, "it does not listen"),
        ({"gateways": ()}, "no gateway is connected"),
        ({"bootstrapped": False}, "it has not joined the DHT"),
        ({"reservations": ()}, "no gateway has granted it a relay"),
    ],
)
def test_the_reason_why_a_node_is_not_ready_is_named(lack: dict[str, Any], reason: str) -> None:
    status = NetworkStatus(("/ip4/10.0.0.1/tcp/4001",), ("gateway",), ("gateway",), bootstrapped=True, healthy=True)
    assert status.lack is None
    assert replace(status, healthy=False, **lack).lack == reason


async def test_handshakes_take_no_more_than_their_part_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charged_s = 0.0

    class Measured(CpuBudget):
        def charge(self, elapsed_s: float, now_s: float) -> None:
            nonlocal charged_s
            charged_s += elapsed_s
            super().charge(elapsed_s, now_s)

    def handshake(port: int) -> None:
        with suppress(OSError), anybody().wrap_socket(socket.create_connection(("localhost", port))):
            pass

    monkeypatch.setattr(http_server, "CpuBudget", Measured)
    async with world(tmp_path) as w:
        began = perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(trio.to_thread.run_sync, handshake, w.port)
        elapsed_s = perf_counter() - began
    assert charged_s > 200 * 0.0003  # a handshake needs at least a signature and a key exchange
    assert charged_s < http_server.HANDSHAKE_CPU_SHARE * elapsed_s + 0.15
