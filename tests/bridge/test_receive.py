"""Receiving through the bridge: pushes wait on disk until an executor listens, and reach only their listener."""

import asyncio
import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hypha_contracts.bridge_config import BridgeConfig
from hypha_contracts.limits import MAX_TAKEN_PER_PEER
from support.bridge_node import FakeNode, Handler, safetensors, staged, streaming

from .conftest import OTHER, SERVER, STRANGER, peers, until

pytestmark = pytest.mark.anyio

STOCK = {"resource": {"type": "peers", "peers": [SERVER, OTHER], "strategy": {"type": "All"}}}


@contextlib.asynccontextmanager
async def listening(
    bridge: httpx.AsyncClient, body: dict[str, Any] = STOCK, **headers: str
) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    async def events() -> AsyncIterator[dict[str, Any]]:
        async for line in response.aiter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))

    request = bridge.stream("POST", "/resources/receive", json=body, headers=headers)
    async with asyncio.timeout(20), request as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield events()


async def spooled(config: BridgeConfig, count: int) -> None:
    """Wait until this many complete pushes are in the bridge's own directory."""
    state_dir = config.state_dir
    assert state_dir is not None
    await until(lambda: sum(path.is_file() and path.stat().st_size > 0 for path in state_dir.glob("tmp*")) == count)


@pytest.mark.parametrize(
    ("body", "folder"),
    [
        (STOCK, "incoming"),
        (STOCK | {"path": "updates"}, "updates"),
        ({"receive": {"type": "Peers", "peers": [SERVER], "strategy": "All"}, "out_dir": "a/b"}, "a/b"),
        ({"receive": {"type": "Peers", "peers": [], "strategy": "All"}}, "incoming"),
    ],
)
async def test_both_forms_of_a_request_receive_pushes(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, body: dict[str, Any], folder: str
) -> None:
    data = safetensors(2_000_000)
    async with listening(bridge, body) as events:
        node.incoming.put((SERVER, data))
        event = await anext(events)
    assert event["path"].startswith(f"{folder}/{SERVER}")
    assert (event["size"], event["from_peer"], event["sequence"]) == (len(data), SERVER, 0)
    assert event["checksum"] == "sha256:" + hashlib.sha256(data).hexdigest()
    file = config.work_dir / event["path"]
    assert file.read_bytes() == data
    assert file.stat().st_mode & 0o777 == 0o600


class TestOneAtATime:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"push_pollers": 1})

    async def test_pushes_wait_for_a_listener_and_arrive_in_order_each_in_its_own_file(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        for number in range(3):
            node.incoming.put((SERVER, safetensors(100 + number)))
            await spooled(config, number + 1)
        assert not (config.work_dir / "incoming").exists()
        async with listening(bridge) as events:
            received = [await anext(events) for _ in range(3)]
        assert [event["sequence"] for event in received] == [0, 1, 2]
        sizes = [(config.work_dir / event["path"]).stat().st_size for event in received]
        assert sizes == [len(safetensors(100 + number)) for number in range(3)]


async def test_a_sender_that_stalls_every_push_it_may_have_keeps_no_other_sender_waiting(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    go_on = threading.Event()

    def stop_halfway(handler: Handler) -> None:
        data = safetensors(100_000)
        handler.stream(data[:50_000], headers={"Hypha-Peer": SERVER}, whole=False)
        go_on.wait(20)

    async with listening(bridge) as events:
        node.fail_next("GET /pushes", *[stop_halfway] * MAX_TAKEN_PER_PEER * 2)
        await until(lambda: not node.faults["GET /pushes"] and node.waiting == 1)
        node.incoming.put((OTHER, safetensors(10)))
        assert (await anext(events))["from_peer"] == OTHER
        await until(lambda: node.waiting == 1)
        assert node.most_waiting == 1
        go_on.set()


async def test_a_listener_that_returns_gets_the_pushes_that_arrived_meanwhile(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    async with listening(bridge) as events:
        node.incoming.put((SERVER, safetensors(10)))
        assert (await anext(events))["sequence"] == 0
    node.incoming.put((OTHER, safetensors(20)))
    await spooled(config, 1)
    async with listening(bridge) as events:
        assert (await anext(events))["sequence"] == 1


@pytest.mark.parametrize(("last_event_id", "repeated"), [("0", [1, 2]), ("-1", [0, 1, 2])])
async def test_last_event_id_repeats_lost_events(
    bridge: httpx.AsyncClient, node: FakeNode, last_event_id: str, repeated: list[int]
) -> None:
    """With -1, a restarted executor that has dealt with no event gets all of them."""
    async with listening(bridge) as events:
        for size in (10, 20, 30):
            node.incoming.put((SERVER, safetensors(size)))
            last = await anext(events)
    async with listening(bridge, **{"Last-Event-ID": last_event_id}) as events:
        again = [await anext(events) for _ in repeated]
    assert [event["sequence"] for event in again] == repeated
    assert again[-1] == last


async def test_each_listener_gets_only_pushes_of_its_peers(bridge: httpx.AsyncClient, node: FakeNode) -> None:
    def only(peer: str) -> dict[str, Any]:
        return {"receive": {"type": "peers", "peers": [peer], "strategy": "All"}}

    async with listening(bridge, only(SERVER)) as from_server, listening(bridge, only(OTHER)) as from_other:
        node.incoming.put((OTHER, safetensors(1)))
        node.incoming.put((SERVER, safetensors(2)))
        assert (await anext(from_server))["from_peer"] == SERVER
        assert (await anext(from_other))["from_peer"] == OTHER


@pytest.mark.parametrize(
    "fault",
    [
        streaming(safetensors(100_000)[:50_000], whole=False),
        streaming(b"", whole=True),
        lambda handler: handler.stream(safetensors(9)[:-1], headers={"Hypha-Peer": SERVER}),
        lambda handler: handler.stream(safetensors(9), headers={"Hypha-Peer": STRANGER}),
        lambda handler: handler.stream(safetensors(100_000)[:70_000], headers={"Hypha-Peer": SERVER}, whole=False),
    ],
    ids=["no sender", "nothing", "short", "a stranger's", "broken off"],
)
async def test_an_incomplete_push_or_one_of_another_job_is_dropped(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, fault: Any
) -> None:
    node.fail_next("GET /pushes", fault)
    async with listening(bridge) as events:
        await until(lambda: not node.faults["GET /pushes"])
        node.incoming.put((SERVER, safetensors(3)))
        event = await anext(events)
    assert (event["sequence"], event["size"]) == (0, len(safetensors(3)))
    assert len(list((config.work_dir / "incoming").iterdir())) == 1


async def test_after_any_failure_of_a_push_the_next_one_arrives(
    bridge: httpx.AsyncClient, node: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Path) -> None:
        raise RuntimeError("nobody foresaw this")

    async with listening(bridge) as events:
        with monkeypatch.context() as broken:
            broken.setattr("hypha_bridge.inbox.check_complete", fail)
            node.incoming.put((SERVER, safetensors(10)))
            await until(lambda: "nobody foresaw this" in caplog.text)
        node.incoming.put((SERVER, safetensors(20)))
        assert (await anext(events))["size"] == len(safetensors(20))


async def test_files_that_are_not_safetensors_are_passed_on(bridge: httpx.AsyncClient, node: FakeNode) -> None:
    node.incoming.put((SERVER, b"any other file, whole as far as anybody can tell"))
    async with listening(bridge) as events:
        assert (await anext(events))["size"] == 48


async def test_an_idle_event_stream_has_keepalive_comments(
    bridge: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypha_bridge.inbox._KEEP_ALIVE_S", 0.05)
    async with bridge.stream("POST", "/resources/receive", json=STOCK) as response:
        lines = response.aiter_lines()
        assert [await anext(lines) for _ in range(4)] == [": keepalive", "", ": keepalive", ""]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (STOCK | {"path": "../x"}, 400),
        (STOCK | {"path": "link"}, 400),
        ({"resource": {"type": "peers", "peers": [STRANGER], "strategy": "All"}}, 403),
        ({"resource": {"type": "uri", "value": "http://example.org/x"}}, 400),
        ({}, 400),
    ],
)
async def test_a_bad_subscription_is_refused_with_a_reason(
    bridge: httpx.AsyncClient, config: BridgeConfig, body: dict[str, Any], status: int
) -> None:
    (config.work_dir / "link").symlink_to("/tmp")
    answer = await bridge.post("/resources/receive", json=body)
    assert answer.status_code == status
    assert answer.json()["detail"]


async def test_a_push_survives_a_folder_that_the_job_turned_into_a_link(
    bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
) -> None:
    async with listening(bridge) as events:
        (config.work_dir / "incoming").rmdir()
        (config.work_dir / "incoming").symlink_to("/tmp")
        node.incoming.put((SERVER, safetensors(10)))
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    async with listening(bridge, STOCK | {"path": "elsewhere"}) as events:
        assert (await anext(events))["path"].startswith("elsewhere/")


def from_one_peer(config: BridgeConfig, **changes: Any) -> BridgeConfig:
    """The configuration of a job whose updates come from one peer."""
    specification = json.loads(config.job_file.read_text())
    specification["executor"]["config"]["results"] = peers(SERVER)
    config.job_file.write_text(json.dumps(specification))
    return config.model_copy(update=changes)


FROM_SERVER = {"resource": peers(SERVER)}


class TestWithASmallSpool:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return from_one_peer(config, waiting_pushes=2, push_pollers=1)

    async def test_pushes_beyond_the_limit_stay_with_the_node(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        for number in range(4):
            node.incoming.put((SERVER, safetensors(number + 1)))
        await spooled(config, 2)
        await asyncio.sleep(3 * node.poll_s)
        assert node.incoming.qsize() == 2
        async with listening(bridge, FROM_SERVER) as events:
            assert [(await anext(events))["sequence"] for _ in range(4)] == [0, 1, 2, 3]


class TestWithOneSenderAndLittleStorage:
    STORAGE_BYTES = 1_000_000

    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return from_one_peer(config, storage_bytes=self.STORAGE_BYTES)

    async def test_pushes_without_a_listener_fill_at_most_half_of_the_storage(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        for _ in range(20):
            node.incoming.put((SERVER, safetensors(self.STORAGE_BYTES // 10)))
        await until(lambda: node.incoming.qsize() <= 15)
        await asyncio.sleep(3 * node.poll_s)
        assert used(config) <= self.STORAGE_BYTES // 2
        async with listening(bridge, FROM_SERVER) as events:
            for _ in range(20):
                (config.work_dir / (await anext(events))["path"]).unlink()

    async def test_a_push_larger_than_half_of_the_storage_is_broken_off_and_the_next_one_arrives(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hypha_bridge.push_budget._MAX_WAIT_S", 0.0)
        node.incoming.put((SERVER, safetensors(self.STORAGE_BYTES * 3 // 5)))
        async with listening(bridge, FROM_SERVER) as events:
            node.incoming.put((SERVER, safetensors(10)))
            assert (await anext(events))["size"] == len(safetensors(10))
            await until(lambda: not staged(config))

    async def test_an_executor_that_keeps_all_files_goes_on_to_receive(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        async with listening(bridge, FROM_SERVER) as events:
            for _ in range(8):
                node.incoming.put((SERVER, safetensors(self.STORAGE_BYTES // 10)))
                await anext(events)


class TestWithTwoSendersAndLittleStorage:
    STORAGE_BYTES = 40_000_000

    @pytest.fixture
    def config(self, config: BridgeConfig, monkeypatch: pytest.MonkeyPatch) -> BridgeConfig:
        monkeypatch.setattr("hypha_bridge.push_budget._MAX_WAIT_S", 0.0)
        return config.model_copy(update={"storage_bytes": self.STORAGE_BYTES})

    @pytest.mark.parametrize("size_bytes", [1_000_000, 9_000_000, 35_000_000])
    async def test_a_peer_that_floods_gets_its_share_and_the_pushes_of_another_arrive(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig, size_bytes: int
    ) -> None:
        flood = 80_000_000 // size_bytes
        for _ in range(flood):
            node.incoming.put((SERVER, safetensors(size_bytes)))
        async with listening(bridge) as events:
            for _ in range(5):
                node.incoming.put((OTHER, safetensors(1_000_000)))
            received = Counter[str]()
            while received[OTHER] < 5:
                event = await anext(events)
                received[event["from_peer"]] += 1
                if event["from_peer"] == OTHER:
                    (config.work_dir / event["path"]).unlink()
        assert received[SERVER] * size_bytes <= self.STORAGE_BYTES // 4
        assert used(config) <= self.STORAGE_BYTES // 2

    async def test_slow_pushes_of_one_peer_leave_space_for_those_of_another(
        self, bridge: httpx.AsyncClient, node: FakeNode, config: BridgeConfig
    ) -> None:
        go_on = threading.Event()

        def stall(handler: Handler) -> None:
            handler.stream(safetensors(19_000_000)[:18_800_000], headers={"Hypha-Peer": SERVER}, whole=False)
            go_on.wait(20)

        node.fail_next("GET /pushes", stall, stall)
        async with listening(bridge) as events:
            await until(lambda: not node.faults["GET /pushes"])
            for _ in range(3):
                node.incoming.put((OTHER, safetensors(3_000_000)))
                event = await anext(events)
                assert event["from_peer"] == OTHER
        assert used(config) <= self.STORAGE_BYTES // 2
        go_on.set()


def used(config: BridgeConfig) -> int:
    """The bytes of all files of the job."""
    files = [*config.work_dir.rglob("*"), *staged(config)]
    return sum(path.stat().st_size for path in files if path.is_file())
