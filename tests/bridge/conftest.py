"""A bridge as in production (uvicorn on a Unix socket), in this process, with a node that fails on demand."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hypha_bridge.config import read
from hypha_bridge.server import BridgeServer
from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import TOKEN, FakeNode

SCHEDULER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
PROVIDER = "12D3KooWHCJbJKGDfCgHRoCuK9q4STyRnVveqLoXAPBbXHTZx9Cv"
SERVER = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo"
OTHER = "12D3KooWSHj3RRbBjD15g6wekV8y3mm57Pobmps2g2WJm6F67Lay"
STRANGER = "12D3KooWLJtG8fd2hkQzTn96MrLvThmnNQjTUFZwGEsLRz5EmSzc"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other threads or processes change."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


def peers(*names: str) -> dict[str, Any]:
    return {"type": "peers", "peers": list(names), "strategy": {"type": "All"}}


def job() -> dict[str, Any]:
    config = {
        "model": {"task": "auto", "artifact": {"type": "uri", "value": "https://example.org/m"}, "input-names": ["x"]},
        "data": {"type": "scheduler", "peer": SCHEDULER, "dataset": "digits"},
        "updates": peers(SERVER, OTHER),
        "results": peers(SERVER, OTHER),
        "optimizer": {"learning-rate": 0.1},
        "batch_size": 4,
    }
    executor = {"class": "train", "descriptor": {"name": "diloco-transformer"}, "config": config}
    return {"job_id": "5f0c1d9e-7c0b-4a51-9a39-0d3a7a3a0c11", "executor": executor}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    node = FakeNode(tmp_path / "connector.sock")
    node.start()
    yield node
    node.push_gate.set()
    node.stop()


@pytest.fixture
def config(tmp_path: Path, node: FakeNode) -> BridgeConfig:
    """Write the files of a launcher; tests change the configuration with model_copy before they request a bridge."""
    (tmp_path / "job.json").write_text(json.dumps(job()))
    (tmp_path / "token").write_text(TOKEN)
    work_dir = tmp_path / "work"
    work_dir.mkdir(mode=0o700)
    file = tmp_path / "bridge.json"
    settings = {
        "job_file": str(tmp_path / "job.json"),
        "work_dir": str(work_dir),
        "socket": str(work_dir / "bridge.sock"),
        "connector": {"uds": str(node.uds), "token_file": str(tmp_path / "token"), "deadline_s": 10},
        "state_dir": str(tmp_path / "bridge"),
        "drain_s": 5,
    }
    file.write_text(json.dumps(settings))
    return read(BridgeConfig, file)


@pytest.fixture
async def server(config: BridgeConfig) -> AsyncIterator[BridgeServer]:
    """A running bridge."""
    server = BridgeServer(config)
    running = asyncio.create_task(server.run_until_stopped())
    await until(lambda: server.started)
    yield server
    server.should_exit = True
    await running
    if "huggingface_hub" in sys.modules:  # a bridge binds the client to its hub, for its whole process
        http = sys.modules["huggingface_hub.utils._http"]
        http.set_client_factory(http.default_client_factory)


@pytest.fixture
async def bridge(config: BridgeConfig, server: BridgeServer) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the running bridge."""
    transport = httpx.AsyncHTTPTransport(uds=str(config.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://bridge", timeout=30) as client:
        yield client
