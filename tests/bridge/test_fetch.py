"""Fetching through the bridge: both forms of a request, and failures of the network."""

import asyncio
import hashlib
from datetime import datetime
from typing import Any

import httpx
import pytest

from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import FakeNode, break_off, safetensors, staged, streaming, unavailable

from .conftest import OTHER, PROVIDER, SCHEDULER, until

pytestmark = pytest.mark.anyio

STOCK = {"type": "scheduler", "peer": SCHEDULER, "dataset": "digits"}


def assign(node: FakeNode, index: int, size_bytes: int = 1000, dataset: str = "digits") -> bytes:
    data = safetensors(size_bytes, bytes([index]))
    node.slices[dataset, index] = data
    node.assign(dataset, PROVIDER, index)
    return data


@pytest.mark.parametrize(
    ("request_body", "path"),
    [
        (STOCK, "artifacts/3"),
        ({"fetch": STOCK}, "artifacts/3"),
        ({"fetch": STOCK | {"type": "Scheduler"}, "out_dir": "data/train"}, "data/train/3"),
        ({"fetch": STOCK, "out_dir": "."}, "3"),
    ],
)
async def test_both_forms_of_a_request_fetch_an_assigned_slice(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, request_body: dict[str, Any], path: str
) -> None:
    data = assign(node, 3, 3_000_000)
    answer = await bridge.post("/resources/fetch", json=request_body)
    assert answer.status_code == 200, answer.text
    [file] = answer.json()
    assert (file["path"], file["size"]) == (path, len(data))
    assert file["checksum"] == "sha256:" + hashlib.sha256(data).hexdigest()
    assert file["metadata"]["source"] == "scheduler"
    assert datetime.fromisoformat(file["metadata"]["timestamp"]).tzinfo is not None
    assert (config.work_dir / path).read_bytes() == data
    assert (config.work_dir / path).stat().st_mode & 0o777 == 0o600
    assert ("/slices/pull", {"provider": PROVIDER, "dataset": "digits", "index": 3}) in node.requests


async def test_slices_come_in_the_scheduler_s_order_and_the_next_ones_are_read_ahead(
    bridge: httpx.AsyncClient, node: FakeNode
) -> None:
    for index in (5, 2, 9):
        assign(node, index)
    assert (await bridge.post("/resources/fetch", json=STOCK)).json()[0]["path"] == "artifacts/5"
    await until(lambda: ("/slices/pull", {"provider": PROVIDER, "dataset": "digits", "index": 2}) in node.requests)
    assert ("/slices/pull", {"provider": PROVIDER, "dataset": "digits", "index": 9}) not in node.requests
    assert (await bridge.post("/resources/fetch", json=STOCK)).json()[0]["path"] == "artifacts/2"
    assert (await bridge.post("/resources/fetch", json=STOCK)).json()[0]["path"] == "artifacts/9"


async def test_a_slice_that_could_not_be_read_ahead_is_requested_again_when_needed(
    bridge: httpx.AsyncClient, node: FakeNode
) -> None:
    assign(node, 1)
    assert (await bridge.post("/resources/fetch", json=STOCK)).status_code == 200
    answer = await bridge.post("/resources/fetch", json=STOCK)
    assert (answer.status_code, answer.json()["error"]) == (410, "no_slice")
    assign(node, 2)
    assert (await bridge.post("/resources/fetch", json=STOCK)).json()[0]["path"] == "artifacts/2"


async def test_slices_of_two_datasets_do_not_overwrite_each_other(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    first = assign(node, 0)
    await bridge.post("/resources/fetch", json=STOCK)
    second = assign(node, 0, 2000, "letters")
    answer = await bridge.post("/resources/fetch", json=STOCK | {"dataset": "letters"})
    assert (config.work_dir / "artifacts/0").read_bytes() == first
    assert (config.work_dir / answer.json()[0]["path"]).read_bytes() == second


@pytest.mark.parametrize(
    "fault",
    [
        streaming(safetensors(500_000)[:300_000], whole=False),
        streaming(safetensors(500_000)[:300_000], whole=True),
        streaming(b"", whole=True),
        break_off,
        unavailable,
        lambda handler: (handler.body(), handler.refuse(401, "unauthorized")),
    ],
    ids=["broken off", "short", "empty", "hung up", "unavailable", "not known yet"],
)
async def test_a_pull_that_fails_is_retried(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, fault: Any
) -> None:
    data = assign(node, 4, 500_000)
    node.fail_next("POST /slices/pull", fault, fault)
    answer = await bridge.post("/resources/fetch", json=STOCK)
    assert answer.status_code == 200, answer.text
    assert (config.work_dir / "artifacts/4").read_bytes() == data


async def test_a_pull_during_which_the_node_restarts_is_retried(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    data = assign(node, 4, 5_000_000)
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def killed(handler: Any) -> None:
        handler.body()
        handler.stream(data[:2_000_000], whole=False)
        node.stop()
        loop.call_soon_threadsafe(gone.set)

    node.fail_next("POST /slices/pull", killed)
    fetching = asyncio.create_task(bridge.post("/resources/fetch", json=STOCK))
    await gone.wait()
    node.start()
    answer = await fetching
    assert answer.status_code == 200, answer.text
    assert (config.work_dir / "artifacts/4").read_bytes() == data


async def test_a_hostile_slice_is_refused_and_nothing_of_it_appears(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    node.slices["digits", 1] = safetensors(100) + b"more than the header describes"
    node.assign("digits", PROVIDER, 1)
    answer = await bridge.post("/resources/fetch", json=STOCK)
    assert (answer.status_code, answer.json()["error"]) == (502, "source_failed")
    assert list(config.work_dir.glob("artifacts/*")) == []
    assert staged(config) == []


async def test_a_slice_can_be_pulled_from_named_peers_and_the_next_one_is_tried(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    data = assign(node, 7)
    node.fail_next("POST /slices/pull", streaming(data[:50], whole=True))
    reference = {
        "type": "Peers",
        "peers": [OTHER, PROVIDER],
        "strategy": "One",
        "resource": {"dataset": "digits", "index": 7},
    }
    answer = await bridge.post("/resources/fetch", json={"fetch": reference, "out_dir": "in"})
    assert answer.status_code == 200, answer.text
    assert (config.work_dir / "in/7").read_bytes() == data
    assert [r["provider"] for path, r in node.requests if path == "/slices/pull"] == [PROVIDER]


@pytest.mark.parametrize(
    "body",
    [
        {"fetch": STOCK, "out_dir": "../x"},
        {"fetch": STOCK, "out_dir": "/tmp"},
        {"fetch": STOCK | {"type": "ftp"}},
        {"fetch": STOCK | {"peer": "nobody"}},
        {"type": "peers", "peers": [PROVIDER], "strategy": {"type": "All"}},
        {"type": "peers", "peers": [], "strategy": "All", "resource": {"dataset": "digits", "index": 1}},
        {"type": "huggingface", "repository": "", "filenames": ["a"]},
        {"type": "huggingface", "repository": "a/b", "filenames": []},
        {"type": "huggingface", "repository": "a/b", "filenames": ["../a"]},
        {"type": "huggingface", "repository": "a/b", "filenames": ["a", "a"]},
        {"type": "uri", "value": "file:///etc/passwd"},
        {"type": "uri", "value": "http://"},
        [],
        "text",
    ],
)
async def test_a_bad_request_is_refused_with_a_reason(bridge: httpx.AsyncClient, body: Any) -> None:
    answer = await bridge.post("/resources/fetch", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"
    assert answer.json()["detail"]


async def test_an_address_of_this_machine_is_forbidden(bridge: httpx.AsyncClient) -> None:
    answer = await bridge.post("/resources/fetch", json={"type": "uri", "value": "http://169.254.169.254/token"})
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")


async def test_a_body_beyond_the_limit_is_refused(bridge: httpx.AsyncClient) -> None:
    answer = await bridge.post("/resources/fetch", json=STOCK | {"padding": " " * 300_000})
    assert answer.status_code == 413
    assert answer.json()["error"]


async def test_a_refusal_by_the_node_is_passed_on(bridge: httpx.AsyncClient, node: FakeNode) -> None:
    node.fail_next("POST /slices/next", lambda handler: (handler.body(), handler.refuse(403, "forbidden")))
    answer = await bridge.post("/resources/fetch", json=STOCK)
    assert (answer.status_code, answer.json()["error"]) == (403, "forbidden")


class TestWithLittleStorage:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"storage_bytes": 1_000_000})

    async def test_a_slice_that_does_not_fit_is_refused_and_leaves_nothing(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        assign(node, 1, 2_000_000)
        answer = await bridge.post("/resources/fetch", json=STOCK)
        assert (answer.status_code, answer.json()["error"]) == (507, "storage_exceeded")
        assert list(config.work_dir.glob("artifacts/*")) == []
        assert staged(config) == []


class TestWithANodeThatStaysAway:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"connector": config.connector.model_copy(update={"deadline_s": 0.3})})

    async def test_a_fetch_fails_after_the_deadline(self, bridge: httpx.AsyncClient, node: FakeNode) -> None:
        node.stop()
        answer = await bridge.post("/resources/fetch", json=STOCK)
        assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
