"""Hugging Face repositories, fetched through the bridge by the real client from the real devnet hub."""

import contextlib
import hashlib
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hypha_contracts.bridge_config import BridgeConfig
from support.bridge_node import FakeNode

pytestmark = pytest.mark.anyio

WEIGHTS = os.urandom(2_000_000)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("hub")
    files = {
        "digits/small/config.json": b"{}",
        "digits/small/onnx/model.onnx": WEIGHTS,
        "digits/small@v2/config.json": b'{"version": 2}',
        "digits/secret/config.json": b'{"secret": true}',
        "tokens.toml": b'"digits/secret" = ["hf_right"]\n',
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    command = [sys.executable, "-m", "hypha_devnet", "hub", "--root", root, "--tokens", root / "tokens.toml"]
    with subprocess.Popen([*command, "--events"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture
def config(config: BridgeConfig, hub: str) -> BridgeConfig:
    return config.model_copy(
        update={"hub_endpoint": hub, "storage_bytes": 5_000_000, "download_deadline_s": 1, "read_ahead": 0}
    )


def reference(*filenames: str, repository: str = "digits/small", **more: Any) -> dict[str, Any]:
    return {"type": "huggingface", "repository": repository, "filenames": list(filenames)} | more


def large_files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size >= len(WEIGHTS)]


async def test_files_keep_their_names_and_folders(bridge: httpx.AsyncClient, config: BridgeConfig) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx", "config.json"))
    assert answer.status_code == 200, answer.text
    model, settings = answer.json()
    assert (model["path"], settings["path"]) == ("artifacts/onnx/model.onnx", "artifacts/config.json")
    assert (model["size"], model["checksum"]) == (len(WEIGHTS), "sha256:" + hashlib.sha256(WEIGHTS).hexdigest())
    assert model["metadata"]["source"] == "huggingface"
    assert (config.work_dir / model["path"]).read_bytes() == WEIGHTS
    assert (config.work_dir / model["path"]).stat().st_mode & 0o777 == 0o600


async def test_the_documented_form_fetches_a_revision(bridge: httpx.AsyncClient, config: BridgeConfig) -> None:
    body = {"fetch": reference("config.json", revision="v2") | {"type": "HuggingFace"}, "out_dir": "models"}
    answer = await bridge.post("/resources/fetch", json=body)
    assert answer.status_code == 200, answer.text
    assert json.loads((config.work_dir / "models/config.json").read_text()) == {"version": 2}


async def test_a_private_repository_opens_to_the_reference_s_token(
    bridge: httpx.AsyncClient, config: BridgeConfig
) -> None:
    wanted = reference("config.json", repository="digits/secret")
    answer = await bridge.post("/resources/fetch", json=wanted | {"token": "hf_right"})
    assert answer.status_code == 200, answer.text
    assert json.loads((config.work_dir / "artifacts/config.json").read_text()) == {"secret": True}


async def test_a_private_repository_stays_closed_to_the_operator_s_own_token(
    bridge: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    answer = await bridge.post("/resources/fetch", json=reference("config.json", repository="digits/secret"))
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("wanted", "status", "code"),
    [
        (reference("nothing.json"), 404, "not_found"),
        (reference("config.json", revision="v9"), 404, "not_found"),
        (reference("config.json", repository="digits/none"), 404, "not_found"),
        (reference("config.json", repository="../../etc"), 400, "invalid_request"),
        (reference("config.json", repository="a/b/c/d"), 400, "invalid_request"),
    ],
)
async def test_a_file_that_the_hub_lacks_is_an_error_with_a_reason(
    bridge: httpx.AsyncClient, wanted: dict[str, Any], status: int, code: str
) -> None:
    answer = await bridge.post("/resources/fetch", json=wanted)
    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert answer.json()["detail"]


async def test_nothing_is_kept_outside_the_work_directory(
    bridge: httpx.AsyncClient, config: BridgeConfig, tmp_path: Path
) -> None:
    answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
    assert answer.status_code == 200, answer.text
    assert large_files(tmp_path) == [config.work_dir / "artifacts/onnx/model.onnx"]


class _BreakingProxy(socketserver.ThreadingTCPServer):
    """Forwards requests to the hub and breaks off the first answer longer than a megabyte in its middle."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, hub: str) -> None:
        super().__init__(("127.0.0.1", 0), _Pass)
        self.hub = httpx.URL(hub)
        self.breaks_left = 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # broken connections are what it is for


class _Pass(socketserver.BaseRequestHandler):
    server: _BreakingProxy

    def handle(self) -> None:
        with socket.create_connection((self.server.hub.host, self.server.hub.port or 80)) as hub:
            threading.Thread(target=self._pass_requests, args=(hub,), daemon=True).start()
            passed = 0
            while data := hub.recv(65536):
                passed += len(data)
                if passed > 1_000_000 and self.server.breaks_left:
                    self.server.breaks_left -= 1
                    return
                self.request.sendall(data)

    def _pass_requests(self, hub: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65536):
                hub.sendall(data)
            hub.shutdown(socket.SHUT_WR)


class TestOverALineThatBreaks:
    @pytest.fixture
    def proxy(self, hub: str) -> Iterator[_BreakingProxy]:
        with _BreakingProxy(hub) as proxy:
            threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
            yield proxy
            proxy.shutdown()

    @pytest.fixture
    def config(self, config: BridgeConfig, proxy: _BreakingProxy) -> BridgeConfig:
        return config.model_copy(update={"hub_endpoint": proxy.url})

    async def test_a_download_is_resumed(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, proxy: _BreakingProxy
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
        assert answer.status_code == 200, answer.text
        assert proxy.breaks_left == 0
        assert (config.work_dir / "artifacts/onnx/model.onnx").read_bytes() == WEIGHTS


class TestWithLittleStorage:
    @pytest.fixture
    def config(self, config: BridgeConfig) -> BridgeConfig:
        return config.model_copy(update={"storage_bytes": 1_000_000})

    async def test_a_file_that_does_not_fit_is_refused_before_its_download(
        self, bridge: httpx.AsyncClient, config: BridgeConfig, node: FakeNode
    ) -> None:
        answer = await bridge.post("/resources/fetch", json=reference("onnx/model.onnx"))
        assert (answer.status_code, answer.json()["error"]) == (507, "storage_exceeded")
        assert not (config.work_dir / "artifacts").exists()
