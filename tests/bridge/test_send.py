"""Sending through the bridge: the executor continues at once, and the file arrives later."""

import asyncio
import os
from typing import Any

import httpx
import pytest

from hypha_bridge.server import BridgeServer
from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import FakeNode, break_off, unavailable

from .conftest import OTHER, SERVER, STRANGER, until

pytestmark = pytest.mark.anyio


async def received(node: FakeNode, count: int = 1) -> list[tuple[str, bytes]]:
    return [await asyncio.to_thread(node.received.get, timeout=20) for _ in range(count)]


def stock(path: str, strategy: str = "All", *peers: str) -> dict[str, Any]:
    return {
        "resource": {"type": "peers", "peers": list(peers) or [SERVER], "strategy": {"type": strategy}},
        "path": path,
    }


DOCUMENTED = {"send": {"type": "Peers", "peers": [SERVER], "strategy": "All"}, "path": "./out/gradient"}


@pytest.mark.parametrize(
    "request_body",
    [stock("out/gradient"), DOCUMENTED],
    ids=["stock", "documented"],
)
async def test_both_forms_of_a_request_send_a_file(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, request_body: dict[str, Any]
) -> None:
    content = os.urandom(3_000_001)
    (config.work_dir / "out").mkdir()
    (config.work_dir / "out/gradient").write_bytes(content)
    answer = await bridge.post("/resources/send", json=request_body)
    assert (answer.status_code, answer.content) == (200, b""), answer.text
    assert await received(node) == [(SERVER, content)]


async def test_an_executor_that_waits_gets_its_answer_once_all_peers_have_the_file(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    (config.work_dir / "predictions").write_bytes(b"x")
    node.push_gate.clear()
    sending = asyncio.create_task(bridge.post("/resources/send", json=stock("predictions") | {"wait": True}))
    done, _ = await asyncio.wait([sending], timeout=0.2)
    assert not done
    node.push_gate.set()
    assert (await sending).status_code == 200
    assert not node.received.empty()


async def test_the_file_may_be_overwritten_and_deleted_as_soon_as_the_bridge_has_answered(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    path = config.work_dir / "gradient"
    path.write_bytes(b"first" * 100_000)
    node.push_gate.clear()
    assert (await bridge.post("/resources/send", json=stock("gradient"))).status_code == 200
    path.write_bytes(b"second")
    assert (await bridge.post("/resources/send", json=stock("gradient"))).status_code == 200
    path.unlink()
    node.push_gate.set()
    assert await received(node, 2) == [(SERVER, b"first" * 100_000), (SERVER, b"second")]


async def test_files_for_a_peer_arrive_in_order_although_the_first_attempt_fails(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    node.refusing_peers[SERVER] = 1
    for name in ("first", "second"):
        (config.work_dir / name).write_text(name)
        await bridge.post("/resources/send", json=stock(name))
    assert await received(node, 2) == [(SERVER, b"first"), (SERVER, b"second")]


async def test_strategy_all_sends_to_every_peer_once(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    await bridge.post("/resources/send", json=stock("x", "All", SERVER, OTHER, SERVER))
    assert sorted(await received(node, 2)) == sorted([(SERVER, b"x"), (OTHER, b"x")])
    assert node.received.empty()


@pytest.mark.parametrize("strategy", ["One", "Random"])
async def test_strategies_one_and_random_send_to_another_peer_if_the_first_fails(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, strategy: str
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    node.refusing_peers[SERVER] = 1000
    await bridge.post("/resources/send", json=stock("x", strategy, SERVER, OTHER))
    assert await received(node) == [(OTHER, b"x")]
    assert node.received.empty()


async def test_strategy_one_prefers_the_first_peer(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    for _ in range(5):
        await bridge.post("/resources/send", json=stock("x", "One", SERVER, OTHER))
    assert await received(node, 5) == [(SERVER, b"x")] * 5


async def test_strategy_random_uses_every_peer_over_time(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    for _ in range(40):
        assert (await bridge.post("/resources/send", json=stock("x", "Random", SERVER, OTHER))).status_code == 200
    assert {peer for peer, _ in await received(node, 40)} == {SERVER, OTHER}


@pytest.mark.parametrize("fault", [break_off, unavailable], ids=["hung up", "unavailable"])
async def test_a_send_that_fails_is_retried(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, fault: Any
) -> None:
    (config.work_dir / "x").write_bytes(b"x" * 1_000_000)
    node.fail_next("POST /pushes", fault, fault)
    await bridge.post("/resources/send", json=stock("x"))
    assert await received(node) == [(SERVER, b"x" * 1_000_000)]


async def test_a_refusing_peer_is_retried_and_does_not_delay_the_others(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    node.refusing_peers[SERVER] = 3
    await bridge.post("/resources/send", json=stock("x", "All", SERVER, OTHER))
    assert await received(node, 2) == [(OTHER, b"x"), (SERVER, b"x")]


async def test_a_delivered_file_leaves_no_state_in_memory(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, server: BridgeServer
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    for peers in ([SERVER], [OTHER], [SERVER, OTHER]):
        await bridge.post("/resources/send", json=stock("x", "One", *peers))
    await received(node, 3)
    outbox = server.bridge.outbox
    await until(lambda: not outbox._pending and not outbox._turns)


async def test_a_node_that_restarts_in_the_middle_of_a_send_gets_the_file_again(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    content = os.urandom(4_000_000)
    (config.work_dir / "x").write_bytes(content)
    node.push_gate.clear()
    await bridge.post("/resources/send", json=stock("x"))
    node.stop()
    node.push_gate.set()
    node.start()
    assert await received(node) == [(SERVER, content)]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (stock("nothing"), 404, "not_found"),
        (stock("../x"), 400, "invalid_request"),
        (stock("/etc/passwd"), 400, "invalid_request"),
        (stock("link"), 400, "invalid_request"),
        (stock("x", "All", STRANGER), 403, "forbidden"),
        (stock("x", "Most"), 400, "invalid_request"),
        ({"resource": {"type": "uri", "value": "http://example.org"}, "path": "x"}, 400, "invalid_request"),
        ({"resource": {"type": "peers", "peers": [], "strategy": "All"}, "path": "x"}, 400, "invalid_request"),
        ({"path": "x"}, 400, "invalid_request"),
    ],
)
async def test_a_bad_send_is_refused_with_a_reason(
    bridge: httpx.AsyncClient, config: BridgeConfig, body: dict[str, Any], status: int, code: str
) -> None:
    (config.work_dir / "x").write_bytes(b"x")
    (config.work_dir / "link").symlink_to("/etc/passwd")
    answer = await bridge.post("/resources/send", json=body)
    assert (answer.status_code, answer.json()["error"]) == (status, code)


class TestWithAShortDeadline:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(
            update={
                "send_deadline_s": 0.3,
                "connector": config.connector.model_copy(update={"deadline_s": 0.3}),
            }
        )

    async def test_an_executor_that_waits_learns_that_one_of_several_peers_does_not_take_the_file(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        (config.work_dir / "predictions").write_bytes(b"x")
        node.refusing_peers[OTHER] = 1000
        answer = await bridge.post("/resources/send", json=stock("predictions", "All", SERVER, OTHER) | {"wait": True})
        assert (answer.status_code, answer.json()["error"]) == (502, "peer_failed")
        assert await received(node) == [(SERVER, b"x")]


class TestWithLittlePatienceForPeers:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"send_deadline_s": 0.05})

    async def test_a_send_waits_for_a_node_that_does_not_answer(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, caplog: pytest.LogCaptureFixture
    ) -> None:
        (config.work_dir / "x").write_bytes(b"x")
        node.stop()
        await bridge.post("/resources/send", json=stock("x"))
        await until(lambda: caplog.text.count("sending x to") >= 2)
        node.start()
        assert await received(node) == [(SERVER, b"x")]


class TestWithAShortQueue:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"pending_sends": 2})

    async def test_a_send_beyond_the_queues_limit_is_refused_as_unavailable(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        (config.work_dir / "x").write_bytes(b"x")
        node.push_gate.clear()
        statuses = [(await bridge.post("/resources/send", json=stock("x"))).status_code for _ in range(3)]
        assert statuses == [200, 200, 503]
        node.push_gate.set()
        await received(node, 2)
