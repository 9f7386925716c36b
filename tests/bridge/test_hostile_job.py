"""Job code that attacks its own bridge, which keeps serving, stays small and writes only to the work directory."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from hypha_bridge import server
from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import staged

from .conftest import SERVER, peers

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connection(path: Path) -> AsyncIterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(path))
        yield client


async def answer(client: socket.socket, request: bytes) -> bytes:
    """Send these bytes and return the first bytes of the answer."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        await loop.sock_sendall(client, request)
        return await loop.sock_recv(client, 4096)


async def test_connections_beyond_the_limit_are_refused_and_the_others_are_served(
    bridge: httpx.AsyncClient, config: BridgeConfig
) -> None:
    assert (await bridge.get("/healthz")).status_code == 200  # and is kept open
    body = b'{"receive": {"type": "Peers", "peers": [], "strategy": "All"}}'
    head = (
        b"POST /resources/receive HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    listen = head % len(body) + body
    async with AsyncExitStack() as stack:
        heard = []
        for _ in range(server.MAX_CONNECTIONS + 20):
            client = await stack.enter_async_context(connection(config.socket))
            heard.append((await answer(client, listen))[:12])
        assert heard.count(b"HTTP/1.1 200") >= server.MAX_CONNECTIONS - 20
        assert heard[-20:] == [b"HTTP/1.1 503"] * 20
    async with asyncio.timeout(10):
        while (await bridge.get("/healthz")).status_code != 200:  # noqa: ASYNC110 - until uvicorn sees that they went
            await asyncio.sleep(0.02)


async def test_heads_that_never_end_are_cut_off(bridge: httpx.AsyncClient, config: BridgeConfig) -> None:
    async with connection(config.socket) as client:
        said = b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1000) for n in range(200))
        assert (await answer(client, said)).startswith(b"HTTP/1.1 400")
    assert (await bridge.get("/healthz")).status_code == 200


async def test_heads_that_arrive_byte_by_byte_delay_no_other_request(
    bridge: httpx.AsyncClient, config: BridgeConfig
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(50):
            client = await stack.enter_async_context(connection(config.socket))
            await asyncio.get_running_loop().sock_sendall(client, b"POST /status/send HTTP/1.1\r\nContent-Le")
        async with asyncio.timeout(10):
            assert (await bridge.get("/healthz")).status_code == 200


async def test_a_sparse_file_that_no_disk_could_hold_is_refused_and_nothing_of_it_is_kept(
    bridge: httpx.AsyncClient, config: BridgeConfig
) -> None:
    with (config.work_dir / "huge").open("wb") as file:
        os.truncate(file.fileno(), 8 * 2**40)
    async with asyncio.timeout(20):
        refused = await bridge.post("/resources/send", json={"resource": peers(SERVER), "path": "huge"})
    assert (refused.status_code, refused.json()["error"]) == (507, "storage_exceeded")
    assert staged(config) == []


class TestWithStorage:
    """A job with a storage limit."""

    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"storage_bytes": 2_000_000})

    async def test_a_sparse_file_larger_than_the_jobs_storage_is_refused_and_nothing_of_it_is_kept(
        self, bridge: httpx.AsyncClient, config: BridgeConfig
    ) -> None:
        with (config.work_dir / "huge").open("wb") as file:
            os.truncate(file.fileno(), 2**40)
        async with asyncio.timeout(20):
            refused = await bridge.post("/resources/send", json={"resource": peers(SERVER), "path": "huge"})
        assert (refused.status_code, refused.json()["error"]) == (507, "storage_exceeded")
        assert staged(config) == []
